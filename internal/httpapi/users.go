package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/viralpilot/user-management/internal/auth"
	"github.com/viralpilot/user-management/internal/user"
)

// userBody is an account on the wire: the twelve columns by name.
type userBody struct {
	CognitoUserID           string                  `json:"cognito_user_id"`
	Username                *string                 `json:"username"`
	Email                   *string                 `json:"email"`
	SubscriptionTier        user.Tier               `json:"subscription_tier"`
	SubscriptionStatus      user.SubscriptionStatus `json:"subscription_status"`
	SubscriptionRenewalDate *timestamp              `json:"subscription_renewal_date"`
	TokensRemaining         int64                   `json:"tokens_remaining"`
	TokensUsedThisMonth     int64                   `json:"tokens_used_this_month"`
	LastTokenResetDate      *timestamp              `json:"last_token_reset_date"`
	CreatedAt               timestamp               `json:"created_at"`
	UpdatedAt               timestamp               `json:"updated_at"`
	IsActive                bool                    `json:"is_active"`
}

func newUserBody(a user.Account) userBody {
	return userBody{
		a.ID, a.Username, a.Email, a.Tier, a.SubscriptionStatus, instant(a.RenewalDate), a.TokensRemaining, a.TokensUsed,
		instant(a.LastReset),
		timestamp{a.CreatedAt},
		timestamp{a.UpdatedAt},
		a.Active,
	}
}

type statusBody struct {
	CognitoUserID           string                  `json:"cognito_user_id"`
	SubscriptionTier        user.Tier               `json:"subscription_tier"`
	SubscriptionStatus      user.SubscriptionStatus `json:"subscription_status"`
	TokensRemaining         int64                   `json:"tokens_remaining"`
	TokensUsedThisMonth     int64                   `json:"tokens_used_this_month"`
	SubscriptionRenewalDate *timestamp              `json:"subscription_renewal_date"`
	CanMakeRequest          bool                    `json:"can_make_request"`
	TierName                string                  `json:"tier_name"`
	TierDescription         string                  `json:"tier_description"`
	Unlimited               bool                    `json:"unlimited"`
	Allowance               int64                   `json:"allowance"`
	AllowanceRemaining      int64                   `json:"allowance_remaining"`
	TopUpTokens             int64                   `json:"top_up_tokens"`
	TokensReserved          int64                   `json:"tokens_reserved"`
	LowBalance              bool                    `json:"low_balance"`
	NextResetAt             *timestamp              `json:"next_reset_at"`
	Reason                  *user.Code              `json:"reason"`
}

type createUserRequest struct {
	CognitoUserID *string   `json:"cognito_user_id" validate:"required,new_id"`
	Username      clearable `json:"username" null:"clear" validate:"omitempty,max=255,no_control"`
	Email         clearable `json:"email" null:"clear" validate:"omitempty,max=255,no_control,email"`
}

func (a *API) createUser(w http.ResponseWriter, r *http.Request) error {
	var in createUserRequest
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := refuseQuery(r, checkKey(r)); err != nil {
		return err
	}
	about(r.Context()).accountID = *in.CognitoUserID
	receipt, err := a.Users.Create(r.Context(), user.NewAccount{
		ID: *in.CognitoUserID, Username: in.Username.value, Email: in.Email.value, Meta: meta(r, nil),
	})
	if err != nil {
		return err
	}
	return respondCreated(w, receipt)
}

func respondCreated(w http.ResponseWriter, receipt user.Receipt) error {
	w.Header().Set("Location", "/user/"+url.PathEscape(receipt.Account.ID))
	markReplayed(w, receipt.Replayed)
	return respondWith(w, http.StatusCreated, newUserBody(receipt.Account))
}

type putUserRequest struct {
	Username clearable `json:"username" null:"clear" validate:"omitempty,max=255,no_control"`
	Email    clearable `json:"email" null:"clear" validate:"omitempty,max=255,no_control,email"`
	Metadata metadata  `json:"metadata" null:"none" validate:"metadata"`
}

// putUser makes the account, or sets what is given on the one that there is.
func (a *API) putUser(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var in putUserRequest
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := refuseQuery(r, checkKey(r)); err != nil {
		return err
	}
	receipt, created, err := a.Users.Put(r.Context(), id, user.PutProfile{
		Username: in.Username.value, SetUsername: in.Username.given,
		Email: in.Email.value, SetEmail: in.Email.given, Meta: meta(r, in.Metadata),
	})
	switch {
	case err != nil:
		return newIDInPath(err)
	case created:
		return respondCreated(w, receipt)
	}
	markReplayed(w, receipt.Replayed)
	return respondWith(w, http.StatusOK, newUserBody(receipt.Account))
}

// newIDInPath makes what is wrong with the id of an account that was to be made a fault of the path.
func newIDInPath(err error) error {
	var e *user.Error
	if errors.As(err, &e) && e.Code == user.CodeValidation && len(e.Fields) == 1 && e.Fields[0].Field == "cognito_user_id" {
		return invalidPath(e.Fields[0].Message)
	}
	return err
}

// getUser creates the account that it does not find, as the earlier service did. HEAD only looks, and so do callers
// who may only read and pages of other sites, of which an image is enough to send a GET.
func (a *API) getUser(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	if err := refuseQuery(r, nil); err != nil {
		return a.unknownFirst(r, id, err)
	}
	get := a.Users.Account
	if mayCreate(r) {
		get = a.Users.GetOrCreate
	}
	account, err := get(r.Context(), id)
	if err != nil {
		return newIDInPath(err)
	}
	return respondWith(w, http.StatusOK, newUserBody(account))
}

// mayCreate reports whether a GET may make the account that it does not find.
func mayCreate(r *http.Request) bool {
	c := callerOf(r)
	return r.Method != http.MethodHead && !crossSite(r) && c.Can(auth.Read) && (c.Can(auth.Consume) || c.Can(auth.Manage))
}

func (a *API) userStatus(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	create := false
	query := newQuery(r)
	query.read("create", func(s string) (err error) { create, err = parseBool(s); return err })
	if err := query.err(); err != nil {
		return a.unknownFirst(r, id, err)
	}
	s, err := a.Users.Status(r.Context(), id)
	if create && mayCreate(r) && errors.Is(err, user.ErrUserNotFound) {
		if _, err := a.Users.GetOrCreate(r.Context(), id); err != nil {
			return newIDInPath(err)
		}
		s, err = a.Users.Status(r.Context(), id)
	}
	if err != nil {
		return err
	}
	body := statusBody{
		CognitoUserID: s.Account.ID, SubscriptionTier: s.Account.Tier, SubscriptionStatus: s.Account.SubscriptionStatus,
		TokensRemaining: s.Account.TokensRemaining, TokensUsedThisMonth: s.Account.TokensUsed,
		SubscriptionRenewalDate: instant(s.Account.RenewalDate),
		CanMakeRequest:          s.Reason == "", TierName: s.Tier.Name, TierDescription: s.Tier.Description,
		Unlimited: s.Tier.Unlimited, Allowance: s.Account.Allowance, AllowanceRemaining: s.Account.AllowanceRemaining(),
		TopUpTokens: s.Account.TopUps, TokensReserved: s.Account.Reserved, LowBalance: s.LowBalance,
		NextResetAt: instant(s.NextResetAt),
	}
	if s.Reason != "" {
		body.Reason = &s.Reason
	}
	return respondWith(w, http.StatusOK, body)
}

type changeTierRequest struct {
	Tier        *string  `json:"tier" validate:"required"`
	RenewalDate *renewal `json:"renewal_date" null:"none"`
	Metadata    metadata `json:"metadata" null:"none" validate:"metadata"`
}

func (a *API) changeTier(w http.ResponseWriter, r *http.Request) error {
	var in changeTierRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	c := user.ChangeTier{Tier: user.Tier(*in.Tier), Meta: meta(r, in.Metadata)}
	if in.RenewalDate != nil {
		c.RenewalDate = &in.RenewalDate.Time
	}
	return a.respondUser(w, r, id, c)
}

// respondUser carries a command out and answers with the account.
func (a *API) respondUser(w http.ResponseWriter, r *http.Request, id string, c user.Command) error {
	receipt, err := a.Users.Do(r.Context(), id, c)
	if err != nil {
		return err
	}
	markReplayed(w, receipt.Replayed)
	return respondWith(w, http.StatusOK, newUserBody(receipt.Account))
}

// pathID is the one place where a path parameter is decoded, exactly once.
func pathID(r *http.Request) (string, error) {
	id, err := url.PathUnescape(chi.URLParam(r, "cognito_user_id"))
	if err != nil {
		return "", errInvalidPath.Because(err)
	}
	if problem := user.ValidateID(id); problem != "" {
		return "", invalidPath(problem)
	}
	about(r.Context()).accountID = id
	return id, nil
}

// encodedTwice reports whether id, which was decoded once, is what encoders make of another id: whatever they escape is
// escaped in it, and nothing else. "%41" is none of those, since nobody escapes an A.
func encodedTwice(id string) bool {
	if !strings.Contains(id, "%") {
		return false
	}
	for i := 0; i < len(id); i++ {
		c := id[i]
		if c != '%' {
			if !unreserved(c) && !strings.ContainsRune("!$&'()*+,;=:@", rune(c)) { // what some encoders leave alone in a path
				return false
			}
			continue
		}
		if i+2 >= len(id) {
			return false
		}
		escaped, err := strconv.ParseUint(id[i+1:i+3], 16, 8)
		if err != nil || unreserved(byte(escaped)) {
			return false
		}
		i += 2
	}
	again, err := url.PathUnescape(id)
	return err == nil && user.ValidateID(again) == ""
}

// unreserved reports whether encoders leave c alone (RFC 3986).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func invalidPath(problem string) error {
	e := *errInvalidPath
	e.Detail = "The user id in the path " + problem + "."
	return &e
}
