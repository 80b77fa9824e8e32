package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"

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

// receiptBody answers a command that wrote a ledger entry.
type receiptBody struct {
	userBody
	EntryID *string `json:"entry_id"`
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
	TokensReserved          int64                   `json:"tokens_reserved"`
	TopUpTokens             int64                   `json:"top_up_tokens"`
	NextResetAt             timestamp               `json:"next_reset_at"`
	Reason                  *user.Code              `json:"reason"`
}

type createUserRequest struct {
	CognitoUserID *string   `json:"cognito_user_id" validate:"required,account_id"`
	Username      clearable `json:"username" null:"clear" validate:"omitempty,max=255,no_control"`
	Email         clearable `json:"email" null:"clear" validate:"omitempty,max=255,no_control,email"`
}

func (a *API) createUser(w http.ResponseWriter, r *http.Request) error {
	var in createUserRequest
	if err := decode(w, r, &in); err != nil {
		return err
	}
	about(r.Context()).accountID = *in.CognitoUserID
	account, err := a.Users.Create(r.Context(), user.NewAccount{
		ID: *in.CognitoUserID, Username: in.Username.value, Email: in.Email.value,
	})
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/user/"+url.PathEscape(account.ID))
	return respond(w, http.StatusCreated, newUserBody(account))
}

// getUser creates the account that it does not find, as the earlier service did. HEAD only looks, and so do callers
// who may only read and pages of other sites, of which an image is enough to send a GET.
func (a *API) getUser(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	get := a.Users.Account
	if c := callerOf(r); r.Method != http.MethodHead && !crossSite(r) && (c.Can(auth.Consume) || c.Can(auth.Manage)) {
		get = a.Users.GetOrCreate
	}
	account, err := get(r.Context(), id)
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, newUserBody(account))
}

func (a *API) userStatus(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	s, err := a.Users.Status(r.Context(), id)
	if err != nil {
		return err
	}
	body := statusBody{
		CognitoUserID: s.Account.ID, SubscriptionTier: s.Account.Tier, SubscriptionStatus: s.Account.SubscriptionStatus,
		TokensRemaining: s.Account.TokensRemaining, TokensUsedThisMonth: s.Account.TokensUsed,
		SubscriptionRenewalDate: instant(s.Account.RenewalDate),
		CanMakeRequest:          s.Reason == "", TierName: s.Tier.Name, TierDescription: s.Tier.Description,
		Unlimited: s.Tier.Unlimited, TokensReserved: s.Account.Reserved, TopUpTokens: s.Account.TopUpsLeft(),
		NextResetAt: timestamp{s.NextResetAt},
	}
	if s.Reason != "" {
		body.Reason = &s.Reason
	}
	return respond(w, http.StatusOK, body)
}

type changeTierRequest struct {
	Tier        *string    `json:"tier" validate:"required"`
	RenewalDate *timestamp `json:"renewal_date" null:"none"`
}

func (a *API) changeTier(w http.ResponseWriter, r *http.Request) error {
	var in changeTierRequest
	id, err := a.command(w, r, &in)
	if err != nil {
		return err
	}
	c := user.ChangeTier{Tier: user.Tier(*in.Tier), Actor: actor(r)}
	if in.RenewalDate != nil {
		c.RenewalDate = &in.RenewalDate.Time
	}
	account, err := a.Users.ChangeTier(r.Context(), id, c)
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, newUserBody(account))
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
	tokens := int64(1)
	if in.TokensToConsume != nil {
		tokens = *in.TokensToConsume
	}
	receipt, err := a.Users.Consume(r.Context(), id, user.Consume{Tokens: tokens, Meta: meta(r, in.Metadata)})
	if err != nil {
		return err
	}
	return respondReceipt(w, receipt)
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
	receipt, err := a.Users.AddTokens(r.Context(), id, user.AddTokens{Tokens: *in.TokensToAdd, Meta: meta(r, in.Metadata)})
	if err != nil {
		return err
	}
	return respondReceipt(w, receipt)
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
	receipt, err := a.Users.Refund(r.Context(), id, c)
	if err != nil {
		return err
	}
	return respondReceipt(w, receipt)
}

func respondReceipt(w http.ResponseWriter, receipt user.Receipt) error {
	body := receiptBody{userBody: newUserBody(receipt.Account)}
	if receipt.Entry != nil {
		body.EntryID = entryID(receipt.Entry.ID)
	}
	markReplayed(w, receipt.Replayed)
	return respond(w, http.StatusOK, body)
}

// markReplayed tells a caller that the command had been done before under its key.
func markReplayed(w http.ResponseWriter, replayed bool) {
	if replayed {
		w.Header().Set(idempotencyReplayed, "true")
	}
}

// command reads the path id, the body and the idempotency key of a call that changes an account. That there is no
// such account counts before anything that is wrong with the rest (product.md §4, order of checks), so it is looked
// up when something is.
func (a *API) command(w http.ResponseWriter, r *http.Request, in any) (string, error) {
	id, err := pathID(r)
	if err != nil {
		return "", err
	}
	err = decode(w, r, in)
	if err == nil {
		err = checkKey(r)
	}
	return id, a.unknownFirst(r, id, err)
}

// unknownFirst returns err, or that the account does not exist when err is not nil and it does not.
func (a *API) unknownFirst(r *http.Request, id string, err error) error {
	if err == nil {
		return nil
	}
	if _, lookup := a.Users.Account(r.Context(), id); errors.Is(lookup, user.ErrUserNotFound) {
		return lookup
	}
	return err
}

// pathID is the one place where a path parameter is decoded, exactly once.
func pathID(r *http.Request) (string, error) {
	id, err := url.PathUnescape(chi.URLParam(r, "cognito_user_id"))
	if err != nil {
		return "", errInvalidPath.Because(err)
	}
	if problem := user.ValidateID(id); problem != "" {
		e := *errInvalidPath
		e.Detail = "The user id in the path " + problem + "."
		return "", &e
	}
	about(r.Context()).accountID = id
	return id, nil
}

// checkKey refuses an Idempotency-Key that is not 1 to 255 printable ASCII characters. An empty one is none.
func checkKey(r *http.Request) error {
	values := r.Header.Values(idempotencyKey)
	problem := ""
	switch {
	case len(values) > 1:
		problem = "must be given once"
	case len(values) == 1 && len(values[0]) > 255:
		problem = "must have at most 255 characters"
	case len(values) == 1 && !printableASCII(values[0]):
		problem = "must be printable ASCII"
	default:
		return nil
	}
	e := *user.ErrValidation
	e.Fields = []user.FieldError{{Field: idempotencyKey, Message: problem}}
	return &e
}

func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func meta(r *http.Request, m metadata) user.Meta {
	return user.Meta{IdempotencyKey: r.Header.Get(idempotencyKey), Metadata: m, Actor: actor(r)}
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
