package httpapi

import (
	"context"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/viralpilot/user-management/internal/user"
)

// patchUserRequest leaves alone what it does not name; null clears.
type patchUserRequest struct {
	Username           clearable                `json:"username" null:"clear" validate:"omitempty,max=255,no_control"`
	Email              clearable                `json:"email" null:"clear" validate:"omitempty,max=255,no_control,email"`
	SubscriptionStatus *user.SubscriptionStatus `json:"subscription_status" validate:"omitnil,subscription_status"`
	IsActive           *bool                    `json:"is_active"`
	Metadata           metadata                 `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) patchUser(w http.ResponseWriter, r *http.Request) error {
	var in patchUserRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	return a.respondUser(w, r, id, user.UpdateProfile{
		Username: in.Username.value, SetUsername: in.Username.given,
		Email: in.Email.value, SetEmail: in.Email.given,
		SubscriptionStatus: in.SubscriptionStatus, Active: in.IsActive, Meta: meta(r, in.Metadata),
	})
}

func (a *API) deleteUser(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var erase bool
	query := newQuery(r)
	query.read("erase", func(s string) (err error) { erase, err = parseBool(s); return err })
	err = query.err()
	if err == nil {
		err = checkKey(r)
	}
	if err == nil && erase && r.Header.Get(idempotencyKey) != "" {
		err = keyProblem("is not kept by an erase, which can be repeated without")
	}
	if err == nil {
		err = refuseBody(r)
	}
	if err != nil {
		return a.unknownFirst(r, id, err)
	}
	status := http.StatusNoContent
	if erase {
		var done bool
		if done, err = a.Users.Erase(r.Context(), id, actor(r)); !done {
			status = http.StatusAccepted // it goes on by itself
		}
	} else {
		var receipt user.Receipt
		receipt, err = a.Users.Deactivate(r.Context(), id, user.Deactivate{Meta: meta(r, nil)})
		markReplayed(w, receipt.Replayed)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(status)
	return nil
}

type usersBody struct {
	Users      []userBody `json:"users"`
	NextCursor *string    `json:"next_cursor"`
	// Searched says where q was looked for, if it was given.
	Searched string `json:"searched,omitempty"`
}

const (
	searchedAnywhere = "anywhere"
	searchedPrefix   = "prefix"
)

func (a *API) listUsers(w http.ResponseWriter, r *http.Request) error {
	q := user.AccountQuery{Limit: defaultLimit}
	query := newQuery(r)
	query.read("tier", func(s string) error {
		q.Tier = user.Tier(s)
		return searchable(s)
	})
	query.read("subscription_status", func(s string) error {
		q.SubscriptionStatus = user.SubscriptionStatus(s)
		return searchable(s)
	})
	query.read("is_active", func(s string) error {
		active, err := parseBool(s)
		q.Active = &active
		return err
	})
	query.read("low_balance", func(s string) error {
		low, err := parseBool(s)
		q.LowBalance = &low
		return err
	})
	query.read("renews_before", func(s string) (err error) {
		if q.RenewsBefore, err = parseRenewal(s); err == nil && q.RenewsBefore.IsZero() {
			err = errRenewal
		}
		return err
	})
	query.read("q", func(s string) error {
		q.Text = s
		return searchable(s)
	})
	query.read("limit", func(s string) (err error) { q.Limit, err = parseLimit(s); return err })
	query.read("cursor", func(s string) (err error) { q.After, err = parseUserCursor(s); return err })
	if err := query.err(); err != nil {
		return err
	}
	limit := q.Limit
	q.Limit++ // see pageOf
	accounts, after, err := a.Users.Accounts(r.Context(), q)
	if err != nil {
		return err
	}
	body := usersBody{Users: []userBody{}}
	accounts, body.NextCursor = pageOf(accounts, limit, func(last user.Account) string { return newUserCursor(last.ID) })
	if body.NextCursor == nil && after != "" { // the search for more was given up there
		next := newUserCursor(after)
		body.NextCursor = &next
	}
	if body.Searched, err = a.searched(r.Context(), q.Text); err != nil {
		return err
	}
	for _, account := range accounts {
		body.Users = append(body.Users, newUserBody(account))
	}
	return respond(w, http.StatusOK, body)
}

// searched says where a text is looked for; nothing for none.
func (a *API) searched(ctx context.Context, text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if utf8.RuneCountInString(text) >= user.MinAnywhere {
		if anywhere, err := a.Users.SearchesAnywhere(ctx); anywhere || err != nil {
			return searchedAnywhere, err
		}
	}
	return searchedPrefix, nil
}

// searchable refuses what no column can hold. An empty text selects all.
func searchable(s string) error {
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > 255 || strings.ContainsFunc(s, unicode.IsControl) {
		return fieldMessage("must be at most 255 characters of UTF-8 without control characters")
	}
	return nil
}

func parseBool(s string) (bool, error) {
	if s != "true" && s != "false" {
		return false, fieldMessage("must be true or false")
	}
	return s == "true", nil
}

// A cursor of users is the id of the last one of a page, or that was looked at for it.

func newUserCursor(last string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(last))
}

func parseUserCursor(s string) (string, error) {
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(s)
	id := string(decoded)
	// Rows that the service did not make may have ids that it would not give.
	if err != nil || id == "" || !utf8.ValidString(id) || utf8.RuneCountInString(id) > 255 || strings.ContainsRune(id, 0) {
		return "", errCursor
	}
	return id, nil
}

func knownStatus(s string) bool {
	return slices.Contains(user.SubscriptionStatuses(), user.SubscriptionStatus(s))
}
