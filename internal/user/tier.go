package user

import (
	"fmt"
	"slices"
	"strings"
)

// MaxTokens is the largest amount of tokens that an account can hold, use or be granted: the columns are 32-bit
// integers.
const MaxTokens int64 = 1<<31 - 1

// Tier is the name of a subscription tier. Rows may carry a name that is not in the catalogue; it is kept, shown
// and grants nothing.
type Tier string

// The tiers of the catalogue.
const (
	TierAdmin   Tier = "admin"
	TierTester  Tier = "tester"
	TierFree    Tier = "free"
	TierBasic   Tier = "basic"
	TierCreator Tier = "creator"
	TierAgency  Tier = "agency"
)

// TierInfo describes a tier.
type TierInfo struct {
	Tier        Tier
	Name        string
	Description string
	// Allowance is the tokens granted per calendar month, 0 to MaxTokens; 0 when Unlimited or not Defined.
	Allowance int64
	// Unlimited accounts spend without being counted.
	Unlimited bool
	// Defined is false for a tier whose allowance nobody has decided yet, and for an unknown one.
	Defined bool
}

// Catalogue is the immutable set of tiers that a running service knows.
type Catalogue struct {
	tiers []TierInfo
}

// NewCatalogue returns the tiers with the monthly allowances (tokens, 0 to MaxTokens) in overrides
// replacing the built-in ones. It fails on a tier that does not exist and on an amount out of range.
func NewCatalogue(overrides map[string]int64) (Catalogue, error) {
	tiers := []TierInfo{
		{Tier: TierAdmin, Name: "Admin", Unlimited: true, Defined: true, Description: "Administrator tier with unlimited tokens"},
		{Tier: TierTester, Name: "Tester", Allowance: 1000, Defined: true},
		{Tier: TierFree, Name: "Free", Defined: true},
		{Tier: TierBasic, Name: "Basic"},
		{Tier: TierCreator, Name: "Creator"},
		{Tier: TierAgency, Name: "Agency"},
	}
	for name, tokens := range overrides {
		i := slices.IndexFunc(tiers, func(t TierInfo) bool { return string(t.Tier) == name })
		if i < 0 {
			return Catalogue{}, fmt.Errorf("unknown tier %q", name)
		}
		if tokens < 0 || tokens > MaxTokens {
			return Catalogue{}, fmt.Errorf("tier %s: %d tokens are out of range (0 to %d)", name, tokens, MaxTokens)
		}
		tiers[i].Allowance, tiers[i].Unlimited, tiers[i].Defined = tokens, false, true
	}
	for i := range tiers {
		switch t := &tiers[i]; {
		case t.Unlimited:
		case !t.Defined:
			t.Description = t.Name + " tier (to be defined)"
		case t.Allowance == 0:
			t.Description = t.Name + " tier with no tokens"
		default:
			t.Description = fmt.Sprintf("%s tier with %d tokens per month (resets on 1st)", t.Name, t.Allowance)
		}
	}
	return Catalogue{tiers: tiers}, nil
}

// All returns the tiers in the order of the product description.
func (c Catalogue) All() []TierInfo { return slices.Clone(c.tiers) }

// Lookup returns the tier and whether the catalogue has it. One that it does not have is described as itself,
// without an allowance.
func (c Catalogue) Lookup(tier Tier) (TierInfo, bool) {
	for _, t := range c.tiers {
		if t.Tier == tier {
			return t, true
		}
	}
	return TierInfo{Tier: tier, Name: string(tier), Description: "Tier that is not in the catalogue"}, false
}

// invalid is the refusal of a tier that the catalogue does not have; it lists those that it has.
func (c Catalogue) invalid(tier Tier) error {
	names := make([]string, len(c.tiers))
	for i, t := range c.tiers {
		names[i] = string(t.Tier)
	}
	e := *ErrInvalidTier
	e.Detail = fmt.Sprintf("%.64q is not a tier: use one of %s.", string(tier), strings.Join(names, ", "))
	return &e
}
