package httpapi

import (
	"bytes"
	"net/http"
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
	send(w, status, typeJSON, *b)
	buffers.Put(b)
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
	return appendValue(b, notes)
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
