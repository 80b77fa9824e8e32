package user_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/viralpilot/user-management/internal/user"
)

func TestCatalogue_OfTheTiers(t *testing.T) {
	t.Parallel()
	builtIn := []user.TierInfo{
		{Tier: "admin", Name: "Admin", Unlimited: true, Defined: true, Description: "Administrator tier with unlimited tokens"},
		{Tier: "tester", Name: "Tester", Allowance: 1000, Defined: true, Description: "Tester tier with 1000 tokens per month (resets on 1st)"},
		{Tier: "free", Name: "Free", Defined: true, Description: "Free tier with no tokens"},
		{Tier: "basic", Name: "Basic", Description: "Basic tier (to be defined)"},
		{Tier: "creator", Name: "Creator", Description: "Creator tier (to be defined)"},
		{Tier: "agency", Name: "Agency", Description: "Agency tier (to be defined)"},
	}
	t.Run("has the tiers of the earlier service", func(t *testing.T) {
		t.Parallel()
		if got := rulesOf(t, nil).Tiers.All(); !slices.Equal(got, builtIn) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("defines and changes tiers", func(t *testing.T) {
		t.Parallel()
		got := rulesOf(t, map[string]int64{"basic": 5000, "creator": user.MaxTokens, "agency": 0, "tester": 10, "free": 3}).Tiers.All()
		want := []user.TierInfo{
			builtIn[0],
			{Tier: "tester", Name: "Tester", Allowance: 10, Defined: true, Description: "Tester tier with 10 tokens per month (resets on 1st)"},
			{Tier: "free", Name: "Free", Allowance: 3, Defined: true, Description: "Free tier with 3 tokens per month (resets on 1st)"},
			{Tier: "basic", Name: "Basic", Allowance: 5000, Defined: true, Description: "Basic tier with 5000 tokens per month (resets on 1st)"},
			{Tier: "creator", Name: "Creator", Allowance: user.MaxTokens, Defined: true, Description: "Creator tier with 2147483647 tokens per month (resets on 1st)"},
			{Tier: "agency", Name: "Agency", Defined: true, Description: "Agency tier with no tokens"},
		}
		if !slices.Equal(got, want) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("can limit the administrator", func(t *testing.T) {
		t.Parallel()
		got, known := rulesOf(t, map[string]int64{"admin": 7}).Tiers.Lookup("admin")
		if !known || got.Unlimited || got.Allowance != 7 || strings.Contains(got.Description, "unlimited") {
			t.Errorf("%+v, %t", got, known)
		}
	})
	t.Run("refuses what it cannot take and names it", func(t *testing.T) {
		t.Parallel()
		for tier, tokens := range map[string]int64{"gold": 1, "": 1, "Basic": 1, "basic": -1, "agency": user.MaxTokens + 1} {
			if _, err := user.NewCatalogue(map[string]int64{tier: tokens}); err == nil || !strings.Contains(err.Error(), tier) {
				t.Errorf("%q:%d: %v", tier, tokens, err)
			}
		}
	})
	t.Run("describes an unknown tier as itself, without an allowance", func(t *testing.T) {
		t.Parallel()
		got, known := rulesOf(t, nil).Tiers.Lookup("gold")
		if want := (user.TierInfo{Tier: "gold", Name: "gold", Description: got.Description}); known || got != want || got.Description == "" {
			t.Errorf("%+v, %t", got, known)
		}
	})
	t.Run("cannot be changed through what it returns", func(t *testing.T) {
		t.Parallel()
		catalogue := rulesOf(t, nil).Tiers
		catalogue.All()[1].Allowance = 1
		if info, _ := catalogue.Lookup(user.TierTester); info.Allowance != 1000 {
			t.Errorf("%+v", info)
		}
	})
}
