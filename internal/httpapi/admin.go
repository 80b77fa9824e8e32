package httpapi

import (
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
}

func (a *API) patchUser(w http.ResponseWriter, r *http.Request) error {
	var in patchUserRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	account, err := a.Users.UpdateProfile(r.Context(), id, user.UpdateProfile{
		Username: in.Username.value, SetUsername: in.Username.given,
		Email: in.Email.value, SetEmail: in.Email.given,
		SubscriptionStatus: in.SubscriptionStatus, Active: in.IsActive, Actor: actor(r),
	})
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, newUserBody(account))
}

func (a *API) deleteUser(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	remove := a.Users.Deactivate
	query := newQuery(r)
	query.read("erase", func(s string) error {
		erase, err := parseBool(s)
		if erase {
			remove = a.Users.Erase
		}
		return err
	})
	if err := query.err(); err != nil {
		return a.unknownFirst(r, id, err)
	}
	if err := remove(r.Context(), id, actor(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

type usersBody struct {
	Users      []userBody `json:"users"`
	NextCursor *string    `json:"next_cursor"`
}

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
	query.read("q", func(s string) error {
		q.Prefix = s
		return searchable(s)
	})
	query.read("limit", func(s string) (err error) { q.Limit, err = parseLimit(s); return err })
	query.read("cursor", func(s string) (err error) { q.After, err = parseUserCursor(s); return err })
	if err := query.err(); err != nil {
		return err
	}
	limit := q.Limit
	q.Limit++ // one more tells whether there is a next page
	accounts, err := a.Users.Accounts(r.Context(), q)
	if err != nil {
		return err
	}
	body := usersBody{Users: []userBody{}}
	if len(accounts) > limit {
		accounts = accounts[:limit]
		cursor := base64.RawURLEncoding.EncodeToString([]byte(accounts[limit-1].ID))
		body.NextCursor = &cursor
	}
	for _, account := range accounts {
		body.Users = append(body.Users, newUserBody(account))
	}
	return respond(w, http.StatusOK, body)
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

// A cursor of users is the id of the last one of a page.
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
