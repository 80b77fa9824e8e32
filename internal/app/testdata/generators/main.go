// Command main calls the service named by its argument with the client beside it, which oapi-codegen made.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"generated/um"
)

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, url string) error {
	c, err := um.NewClientWithResponses(url)
	if err != nil {
		return err
	}
	const id = "a/b%41 ö:c"
	made, err := c.GetUserWithResponse(ctx, id)
	if err != nil || made.JSON200 == nil || made.JSON200.CognitoUserId != id || made.JSON200.SubscriptionTier != um.Free {
		return fmt.Errorf("get: %w, %s", err, made.Body)
	}
	broke, err := c.ConsumeTokensWithResponse(ctx, id, nil, um.ConsumeTokens{})
	if err != nil || broke.StatusCode() != http.StatusPaymentRequired || broke.ApplicationproblemJSON402 == nil ||
		broke.ApplicationproblemJSON402.Code != um.InsufficientTokens || *broke.ApplicationproblemJSON402.TokensRequired != 1 {
		return fmt.Errorf("consume without tokens: %w, %s", err, broke.Body)
	}
	moved, err := c.ChangeTierWithResponse(ctx, id, nil, um.ChangeTier{Tier: um.Tester})
	if err != nil || moved.JSON200 == nil {
		return fmt.Errorf("tier: %w, %s", err, moved.Body)
	}
	status, err := c.GetUserStatusWithResponse(ctx, id, nil)
	if err != nil || status.JSON200 == nil || !status.JSON200.CanMakeRequest || status.JSON200.Reason != nil {
		return fmt.Errorf("status: %w, %s", err, status.Body)
	}
	held, err := c.ReserveTokensWithResponse(ctx, id, nil, um.ReserveTokens{Tokens: 10})
	if err != nil || held.JSON201 == nil || held.JSON201.TokensReserved != 10 {
		return fmt.Errorf("reserve: %w, %s", err, held.Body)
	}
	key := "one"
	for range 2 {
		settled, err := c.SettleReservationWithResponse(ctx, id, held.JSON201.ReservationId,
			&um.SettleReservationParams{IdempotencyKey: &key}, um.SettleReservation{TokensUsed: 7})
		if err != nil || settled.JSON200 == nil || settled.JSON200.TokensRemaining != 993 {
			return fmt.Errorf("settle: %w, %s", err, settled.Body)
		}
	}
	ledger, err := c.ListEntriesWithResponse(ctx, id, nil)
	if err != nil || ledger.JSON200 == nil || len(ledger.JSON200.Entries) != 3 || ledger.JSON200.Entries[0].Kind != um.EntryKindSettle {
		return fmt.Errorf("ledger: %w, %s", err, ledger.Body)
	}
	unknown, err := c.GetUserStatusWithResponse(ctx, "nobody", nil)
	if err != nil || unknown.ApplicationproblemJSON404 == nil || unknown.ApplicationproblemJSON404.Code != um.UserNotFound {
		return fmt.Errorf("status of nobody: %w, %s", err, unknown.Body)
	}
	return nil
}
