// Package user is the domain of the service: accounts, subscription tiers, token rules and the ledger that
// explains every balance.
//
// The rules are pure functions on [Rules]: they take the [State] of one account, a command and an instant, and
// return the [Change] to write, or a refusal. [Service] reads the clock, calls the rules inside [Store.Update] and
// turns the outcome into what callers ask for. The package imports neither a database driver nor anything of HTTP.
//
// All token amounts are whole tokens that fit 32 bits (0 to [MaxTokens]); Go code carries them as int64 so that
// sums cannot wrap before they are checked. References of the form "product.md §3.4" name the numbered rules of the
// product description.
package user
