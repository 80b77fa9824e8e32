package httpapi

import (
	"net/http"
	"strconv"

	"github.com/viralpilot/user-management/internal/user"
)

// receiptBody answers a command that wrote a ledger entry.
type receiptBody struct {
	userBody
	EntryID *string `json:"entry_id"`
}

// consumeBody answers a consume.
type consumeBody struct {
	receiptBody
	TopUpsCharged int64 `json:"top_ups_charged"`
	LowBalance    bool  `json:"low_balance"`
}

type consumeRequest struct {
	TokensToConsume *int64   `json:"tokens_to_consume" validate:"omitnil,min=1,max=2147483647"`
	Metadata        metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) consumeTokens(w http.ResponseWriter, r *http.Request) error {
	var in consumeRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	c := user.Consume{Meta: meta(r, in.Metadata)}
	if in.TokensToConsume != nil {
		c.Tokens = *in.TokensToConsume
	}
	receipt, err := a.Users.Do(r.Context(), id, c)
	if err != nil {
		return err
	}
	body := consumeBody{receiptBody: newReceiptBody(receipt), LowBalance: receipt.LowBalance}
	if e := receipt.Entry; e != nil && e.TopUpsAmount != nil {
		body.TopUpsCharged = -*e.TopUpsAmount
	}
	markReplayed(w, receipt.Replayed)
	return respondWith(w, http.StatusOK, body)
}

type addRequest struct {
	TokensToAdd *int64   `json:"tokens_to_add" validate:"required,min=1,max=2147483647"`
	Metadata    metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) addTokens(w http.ResponseWriter, r *http.Request) error {
	var in addRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	return a.respondReceipt(w, r, id, user.AddTokens{Tokens: *in.TokensToAdd, Meta: meta(r, in.Metadata)})
}

type refundRequest struct {
	EntryID  *string  `json:"entry_id" validate:"required"`
	Tokens   *int64   `json:"tokens" validate:"omitnil,min=1,max=2147483647"`
	Metadata metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) refund(w http.ResponseWriter, r *http.Request) error {
	var in refundRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	c := user.Refund{Meta: meta(r, in.Metadata)}
	if c.EntryID, err = parseEntryID(*in.EntryID); err != nil {
		return a.unknownFirst(r, id, err)
	}
	if in.Tokens != nil {
		c.Tokens = *in.Tokens
	}
	return a.respondReceipt(w, r, id, c)
}

// respondReceipt carries a command out and answers with the account and the entry.
func (a *API) respondReceipt(w http.ResponseWriter, r *http.Request, id string, c user.Command) error {
	receipt, err := a.Users.Do(r.Context(), id, c)
	if err != nil {
		return err
	}
	markReplayed(w, receipt.Replayed)
	return respondWith(w, http.StatusOK, newReceiptBody(receipt))
}

func newReceiptBody(receipt user.Receipt) receiptBody {
	body := receiptBody{userBody: newUserBody(receipt.Account)}
	if receipt.Entry != nil {
		body.EntryID = entryID(receipt.Entry.ID)
	}
	return body
}

func entryID(id int64) *string {
	s := strconv.FormatInt(id, 10)
	return &s
}

// parseEntryID reads an id as entryID writes it; anything else names no entry.
func parseEntryID(s string) (int64, error) {
	id, err := strconv.ParseInt(s, 10, 64)
	if err != nil || id < 1 || *entryID(id) != s {
		return 0, user.ErrEntryNotFound
	}
	return id, nil
}
