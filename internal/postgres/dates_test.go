package postgres_test

import (
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/user"
)

func TestDatesThatNobodyCanShowAreReadAsNone(t *testing.T) {
	t.Parallel()
	url := localpgtest.New(t)
	store, db := open(t, url), connect(t, url)
	for id, date := range map[string]string{
		"later than all": "infinity", "before all": "-infinity", "after 9999": "12026-11-24", "before Christ": "0044-03-15 BC",
	} {
		t.Run(id, func(t *testing.T) {
			db.Exec(`INSERT INTO viralpilot.userdata (cognito_user_id, subscription_tier, subscription_renewal_date,
				last_token_reset_date, created_at, updated_at) VALUES ($1, 'tester', $2::text::timestamp, $2::text::timestamp,
				$2::text::timestamp, $2::text::timestamp)`, id, date)
			a, err := service(t, store).Account(t.Context(), id)
			if err != nil || a.RenewalDate != nil || a.LastReset == nil || !a.LastReset.Equal(now) || a.TokensRemaining != 1000 || a.CreatedAt.Year() != 1 {
				t.Errorf("account %+v, %v", a, err)
			}
			r, err := service(t, store).Do(t.Context(), id, user.Consume{Tokens: 1})
			if err != nil || r.Account.TokensRemaining != 999 {
				t.Errorf("consume %+v, %v", r, err)
			}
		})
	}
}
