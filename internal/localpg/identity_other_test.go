//go:build !linux

package localpg

const diesWithParent = false
