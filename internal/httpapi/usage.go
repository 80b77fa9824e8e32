package httpapi

import (
	"net/http"
	"time"

	"github.com/viralpilot/user-management/internal/user"
)

type usageBody struct {
	TimeZone      string         `json:"time_zone"`
	Days          []usageDayBody `json:"days"`
	TotalCharged  int64          `json:"total_charged"`
	TotalRefunded int64          `json:"total_refunded"`
}

type usageDayBody struct {
	Date           string `json:"date"`
	TokensCharged  int64  `json:"tokens_charged"`
	TokensRefunded int64  `json:"tokens_refunded"`
	// Users is there where all accounts are asked for, Values where a dimension is.
	Users  *int64            `json:"users,omitempty"`
	Values *[]usageValueBody `json:"values,omitempty"`
}

type usageValueBody struct {
	Value          *string `json:"value"`
	TokensCharged  int64   `json:"tokens_charged"`
	TokensRefunded int64   `json:"tokens_refunded"`
	Entries        int64   `json:"entries"`
}

func (a *API) usage(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	q, err := usageQuery(r)
	if err != nil {
		return a.unknownFirst(r, id, err)
	}
	report, err := a.Users.Usage(r.Context(), id, q)
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, newUsageBody(report, q.By != "", false))
}

// allUsage is usage of all accounts together.
func (a *API) allUsage(w http.ResponseWriter, r *http.Request) error {
	q, err := usageQuery(r)
	if err != nil {
		return err
	}
	report, err := a.Users.AllUsage(r.Context(), q)
	if err != nil {
		return err
	}
	return respond(w, http.StatusOK, newUsageBody(report, q.By != "", true))
}

func usageQuery(r *http.Request) (q user.UsageQuery, err error) {
	query := newQuery(r)
	query.read("from", func(s string) (err error) { q.From, err = parseDate(s); return err })
	query.read("to", func(s string) (err error) { q.To, err = parseDate(s); return err })
	query.read("by", func(s string) error {
		if q.By = s; s == "" {
			return fieldMessage("must name a dimension")
		}
		return nil
	})
	return q, query.err()
}

func newUsageBody(report user.UsageReport, values, users bool) usageBody {
	body := usageBody{TimeZone: report.Zone.String(), Days: make([]usageDayBody, len(report.Days))}
	for i, day := range report.Days {
		b := usageDayBody{Date: day.Date.Format(time.DateOnly), TokensCharged: day.Charged, TokensRefunded: day.Refunded}
		if users {
			b.Users = &day.Users
		}
		if values {
			list := make([]usageValueBody, len(day.Values))
			for j, v := range day.Values {
				list[j] = usageValueBody{v.Value, v.Charged, v.Refunded, v.Entries}
			}
			b.Values = &list
		}
		body.Days[i] = b
		body.TotalCharged += day.Charged
		body.TotalRefunded += day.Refunded
	}
	return body
}

func parseDate(s string) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}, fieldMessage("must be a date such as 2026-11-24")
	}
	if t.IsZero() || t.Year() < 1 || t.Year() > 9998 { // the zero time means none, and the day after the last is a date too
		return time.Time{}, errDateRange
	}
	return t, nil
}

const errDateRange = fieldMessage("must be a date from 0001-01-02 to 9998-12-31")
