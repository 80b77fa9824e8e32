// Package user is the domain of the service: accounts, subscription tiers, token rules and the ledger that
// explains every balance.
//
// The rules are pure functions on [Rules]: they take the [State] of one account and a [Command], and return the [Change]
// to write, or a refusal. [Service] calls them inside [Store.Update] and turns the outcome into what callers ask for. The
// package imports neither a database driver nor anything of HTTP. Its README has the rules in words: "rule 8" in a
// comment is the eighth of them.
//
// All token amounts are whole tokens that fit 32 bits (0 to [MaxTokens]); Go code carries them as int64 so that
// sums cannot wrap before they are checked.
package user
