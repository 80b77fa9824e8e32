package localpg

const diesWithParent = true
