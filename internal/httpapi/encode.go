package httpapi

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The bodies that answer most requests write themselves, byte for byte as encoding/json would: it takes several times as
// long for them. A field that is added to one of their types is added to its appendTo as well; a test compares the two.

// appender is a body that writes itself.
type appender interface {
	// appendTo appends the body as JSON to b.
	appendTo(b []byte) []byte
}

// buffers are for bodies until they have been sent.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// respondWith is respond for a body that writes itself.
func respondWith[T appender](w http.ResponseWriter, status int, body T) error {
	b := buffers.Get().(*[]byte)
	*b = append(body.appendTo((*b)[:0]), '\n')
	if send(w, status, typeJSON, *b) == nil {
		buffers.Put(b)
	}
	return nil
}

func (u userBody) appendTo(b []byte) []byte { return append(u.appendFields(append(b, '{')), '}') }

// appendFields is appendTo without the braces.
func (u userBody) appendFields(b []byte) []byte {
	b = appendString(append(b, `"cognito_user_id":`...), u.CognitoUserID)
	b = appendText(append(b, `,"username":`...), u.Username)
	b = appendText(append(b, `,"email":`...), u.Email)
	b = appendString(append(b, `,"subscription_tier":`...), string(u.SubscriptionTier))
	b = appendString(append(b, `,"subscription_status":`...), string(u.SubscriptionStatus))
	b = appendInstant(append(b, `,"subscription_renewal_date":`...), u.SubscriptionRenewalDate)
	b = strconv.AppendInt(append(b, `,"tokens_remaining":`...), u.TokensRemaining, 10)
	b = strconv.AppendInt(append(b, `,"tokens_used_this_month":`...), u.TokensUsedThisMonth, 10)
	b = appendInstant(append(b, `,"last_token_reset_date":`...), u.LastTokenResetDate)
	b = u.CreatedAt.appendTo(append(b, `,"created_at":`...))
	b = u.UpdatedAt.appendTo(append(b, `,"updated_at":`...))
	return strconv.AppendBool(append(b, `,"is_active":`...), u.IsActive)
}

func (r receiptBody) appendTo(b []byte) []byte { return append(r.appendFields(append(b, '{')), '}') }

func (r receiptBody) appendFields(b []byte) []byte {
	return appendText(append(r.userBody.appendFields(b), `,"entry_id":`...), r.EntryID)
}

func (c consumeBody) appendTo(b []byte) []byte {
	b = c.receiptBody.appendFields(append(b, '{'))
	b = strconv.AppendInt(append(b, `,"top_ups_charged":`...), c.TopUpsCharged, 10)
	b = strconv.AppendBool(append(b, `,"low_balance":`...), c.LowBalance)
	return append(b, '}')
}

func (s statusBody) appendTo(b []byte) []byte {
	b = appendString(append(b, `{"cognito_user_id":`...), s.CognitoUserID)
	b = appendString(append(b, `,"subscription_tier":`...), string(s.SubscriptionTier))
	b = appendString(append(b, `,"subscription_status":`...), string(s.SubscriptionStatus))
	b = strconv.AppendInt(append(b, `,"tokens_remaining":`...), s.TokensRemaining, 10)
	b = strconv.AppendInt(append(b, `,"tokens_used_this_month":`...), s.TokensUsedThisMonth, 10)
	b = appendInstant(append(b, `,"subscription_renewal_date":`...), s.SubscriptionRenewalDate)
	b = strconv.AppendBool(append(b, `,"can_make_request":`...), s.CanMakeRequest)
	b = appendString(append(b, `,"tier_name":`...), s.TierName)
	b = appendString(append(b, `,"tier_description":`...), s.TierDescription)
	b = strconv.AppendBool(append(b, `,"unlimited":`...), s.Unlimited)
	b = strconv.AppendInt(append(b, `,"allowance":`...), s.Allowance, 10)
	b = strconv.AppendInt(append(b, `,"allowance_remaining":`...), s.AllowanceRemaining, 10)
	b = strconv.AppendInt(append(b, `,"top_up_tokens":`...), s.TopUpTokens, 10)
	b = strconv.AppendInt(append(b, `,"tokens_reserved":`...), s.TokensReserved, 10)
	b = strconv.AppendBool(append(b, `,"low_balance":`...), s.LowBalance)
	b = appendInstant(append(b, `,"next_reset_at":`...), s.NextResetAt)
	b = appendText(append(b, `,"reason":`...), s.Reason)
	return append(b, '}')
}

func (r reservationReceiptBody) appendTo(b []byte) []byte {
	b = appendString(append(b, `{"reservation_id":`...), r.ReservationID)
	b = appendString(append(b, `,"cognito_user_id":`...), r.CognitoUserID)
	b = appendString(append(b, `,"status":`...), string(r.Status))
	b = strconv.AppendInt(append(b, `,"tokens_reserved":`...), r.TokensReserved, 10)
	b = append(b, `,"tokens_used":`...)
	if r.TokensUsed == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, *r.TokensUsed, 10)
	}
	b = strconv.AppendInt(append(b, `,"tokens_charged":`...), r.TokensCharged, 10)
	b = strconv.AppendInt(append(b, `,"tokens_returned":`...), r.TokensReturned, 10)
	b = strconv.AppendInt(append(b, `,"shortfall":`...), r.Shortfall, 10)
	b = strconv.AppendBool(append(b, `,"late":`...), r.Late)
	b = appendMetadata(append(b, `,"metadata":`...), r.Metadata)
	b = r.CreatedAt.appendTo(append(b, `,"created_at":`...))
	b = r.ExpiresAt.appendTo(append(b, `,"expires_at":`...))
	b = appendInstant(append(b, `,"closed_at":`...), r.ClosedAt)
	b = strconv.AppendInt(append(b, `,"tokens_remaining":`...), r.TokensRemaining, 10)
	b = strconv.AppendInt(append(b, `,"tokens_used_this_month":`...), r.TokensUsedThisMonth, 10)
	b = strconv.AppendBool(append(b, `,"low_balance":`...), r.LowBalance)
	b = appendText(append(b, `,"entry_id":`...), r.EntryID)
	return append(b, '}')
}

func (e entryBody) appendTo(b []byte) []byte { return append(e.appendFields(append(b, '{')), '}') }

func (e entryBody) appendFields(b []byte) []byte {
	b = e.EntryID.appendTo(append(b, `"entry_id":`...))
	b = appendString(append(b, `,"kind":`...), string(e.Kind))
	b = strconv.AppendInt(append(b, `,"amount":`...), e.Amount, 10)
	b = strconv.AppendInt(append(b, `,"balance_after":`...), e.BalanceAfter, 10)
	b = strconv.AppendInt(append(b, `,"used_after":`...), e.UsedAfter, 10)
	b = strconv.AppendInt(append(b, `,"tokens_charged":`...), e.TokensCharged, 10)
	b = strconv.AppendInt(append(b, `,"tokens_refunded":`...), e.TokensRefunded, 10)
	b = append(b, `,"top_ups_amount":`...)
	if e.TopUpsAmount == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, *e.TopUpsAmount, 10)
	}
	b = appendRaw(append(b, `,"changes":`...), e.Changes)
	b = appendText(append(b, `,"reservation_id":`...), e.ReservationID)
	b = append(b, `,"refunded_entry_id":`...)
	if e.RefundedEntryID == nil {
		b = append(b, "null"...)
	} else {
		b = e.RefundedEntryID.appendTo(b)
	}
	b = appendText(append(b, `,"idempotency_key":`...), e.IdempotencyKey)
	b = appendRaw(append(b, `,"metadata":`...), e.Metadata)
	b = appendText(append(b, `,"actor":`...), e.Actor)
	return e.CreatedAt.appendTo(append(b, `,"created_at":`...))
}

func (e feedEntryBody) appendTo(b []byte) []byte {
	b = appendString(append(b, `{"cognito_user_id":`...), e.AccountID)
	return append(e.entryBody.appendFields(append(b, ',')), '}')
}

func (l ledgerBody) appendTo(b []byte) []byte {
	b = append(b, `{"entries":`...)
	b = appendList(b, l.Entries)
	return append(appendText(append(b, `,"next_cursor":`...), l.NextCursor), '}')
}

func (f feedBody) appendTo(b []byte) []byte {
	b = append(b, `{"entries":`...)
	b = appendList(b, f.Entries)
	return append(appendString(append(b, `,"next_cursor":`...), f.NextCursor), '}')
}

// appendList appends a list, or null for none.
func appendList[T appender](b []byte, list []T) []byte {
	if list == nil {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i, item := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = item.appendTo(b)
	}
	return append(b, ']')
}

// appendRaw appends what is JSON already, or null for none.
func appendRaw(b []byte, text json.RawMessage) []byte {
	if text == nil {
		return append(b, "null"...)
	}
	return append(b, text...)
}

// withoutBlanks takes the blanks between the tokens of a valid JSON away, in place.
func withoutBlanks(text []byte) json.RawMessage {
	kept := text[:0]
	inString, escaped := false, false
	for _, c := range text {
		switch {
		case escaped:
			escaped = false
		case inString:
			inString, escaped = c != '"', c == '\\'
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			continue
		default:
			inString = c == '"'
		}
		kept = append(kept, c)
	}
	return kept
}

// appendString appends s as a string of JSON. Whatever has to be escaped is left to encoding/json.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return appendValue(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendValue appends v, which can always be written as JSON, by encoding/json.
func appendValue(b []byte, v any) []byte {
	text := bytes.NewBuffer(b)
	marshal(text, v)
	text.Truncate(text.Len() - 1) // the line's end
	return text.Bytes()
}

// appendText appends a text, or null for none.
func appendText[T ~string](b []byte, s *T) []byte {
	if s == nil {
		return append(b, "null"...)
	}
	return appendString(b, string(*s))
}

// appendMetadata appends notes, in the order of their names.
func appendMetadata(b []byte, notes map[string]string) []byte {
	if notes == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	for i, name := range slices.Sorted(maps.Keys(notes)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(append(appendString(b, name), ':'), notes[name])
	}
	return append(b, '}')
}

// appendInstant appends an instant, or null for none.
func appendInstant(b []byte, t *timestamp) []byte {
	if t == nil {
		return append(b, "null"...)
	}
	return t.appendTo(b)
}

// appendTo appends the instant as timestampLayout writes it, for which package time has no quick way. It has one for
// RFC3339Nano, which leaves trailing zeros out: a seventh digit keeps those before it there, and is taken away.
func (t timestamp) appendTo(b []byte) []byte {
	b = append(b, '"')
	b = t.UTC().Truncate(time.Microsecond).Add(100*time.Nanosecond).AppendFormat(b, time.RFC3339Nano)
	return append(b[:len(b)-len("1Z")], `Z"`...)
}
