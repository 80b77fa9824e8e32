package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/viralpilot/user-management/internal/auth"
)

const serviceName = "Viral Pilot User Management Service"

// root answers with what the service is, its calls and the clients that it hands out.
func (a *API) root(clients map[string]clientBody) handler {
	body := map[string]any{
		"service": serviceName,
		"version": a.Version,
		"status":  "running",
		"clients": clients,
		"endpoints": map[string]string{
			"health":         "GET /health",
			"tiers":          "GET /tiers",
			"users":          "GET /users",
			"feed":           "GET /ledger",
			"create_user":    "POST /user",
			"get_user":       "GET /user/{cognito_user_id}",
			"put_user":       "PUT /user/{cognito_user_id}",
			"change_user":    "PATCH /user/{cognito_user_id}",
			"delete_user":    "DELETE /user/{cognito_user_id}",
			"user_status":    "GET /user/{cognito_user_id}/status",
			"change_tier":    "PUT /user/{cognito_user_id}/tier",
			"consume_tokens": "POST /user/{cognito_user_id}/consume-tokens",
			"add_tokens":     "POST /user/{cognito_user_id}/add-tokens",
			"reservations":   "POST /user/{cognito_user_id}/reservations",
			"refunds":        "POST /user/{cognito_user_id}/refunds",
			"ledger":         "GET /user/{cognito_user_id}/ledger",
			"usage":          "GET /user/{cognito_user_id}/usage",
			"documentation":  "GET /docs",
			"console":        "GET /console",
			"whoami":         "GET /whoami",
		},
	}
	return func(w http.ResponseWriter, _ *http.Request) error { return respond(w, http.StatusOK, body) }
}

// healthTimeout is how long the database may take to answer before the service calls itself unhealthy.
const healthTimeout = 2 * time.Second

type healthBody struct {
	Status    string    `json:"status"`
	Service   string    `json:"service"`
	Timestamp timestamp `json:"timestamp"`
	Database  string    `json:"database"`
	Version   string    `json:"version"`
}

func (a *API) health(w http.ResponseWriter, r *http.Request) error {
	body := healthBody{Status: "healthy", Service: "user-management", Database: "connected", Version: a.Version}
	status := http.StatusOK
	// Somebody who hangs up says nothing about the database, and would cost the probe its connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), healthTimeout)
	defer cancel()
	if err := a.Database.Ping(ctx); err != nil {
		a.Log.WarnContext(ctx, "health check failed", "request_id", requestID(ctx), "error", err)
		status, body.Status, body.Database = http.StatusServiceUnavailable, "unhealthy", "disconnected"
	}
	if a.stopping.Load() {
		status, body.Status = http.StatusServiceUnavailable, "shutting_down"
	}
	body.Timestamp = timestamp{a.Users.Now()}
	return respond(w, status, body)
}

func (a *API) livez(w http.ResponseWriter, _ *http.Request) error {
	return respond(w, http.StatusOK, map[string]string{"status": "alive"})
}

type whoamiBody struct {
	Name      string       `json:"name"`
	Scopes    []auth.Scope `json:"scopes"`
	ExpiresAt *timestamp   `json:"expires_at"`
	Open      bool         `json:"open,omitempty"`
}

// whoami tells callers whom the service takes them for.
func (a *API) whoami(w http.ResponseWriter, r *http.Request) error {
	if err := refuseQuery(r, nil); err != nil {
		return err
	}
	c := callerOf(r)
	body := whoamiBody{Name: c.Name, Scopes: append([]auth.Scope{}, c.Scopes...), Open: a.Authenticate == nil}
	if !c.ExpiresAt.IsZero() {
		body.ExpiresAt = &timestamp{c.ExpiresAt}
	}
	return respond(w, http.StatusOK, body)
}

type tierBody struct {
	Name           string `json:"name"`
	TokensPerMonth int64  `json:"tokens_per_month"`
	Unlimited      bool   `json:"unlimited"`
	Defined        bool   `json:"defined"`
	Description    string `json:"description"`
}

func (a *API) tiers(w http.ResponseWriter, r *http.Request) error {
	if err := refuseQuery(r, nil); err != nil {
		return err
	}
	tiers := map[string]tierBody{}
	for _, t := range a.Users.Tiers() {
		perMonth := t.Allowance
		if t.Unlimited {
			perMonth = -1 // what clients of the earlier service expect
		}
		tiers[string(t.Tier)] = tierBody{t.Name, perMonth, t.Unlimited, t.Defined, t.Description}
	}
	return respond(w, http.StatusOK, map[string]any{"tiers": tiers, "description": "Available subscription tiers"})
}
