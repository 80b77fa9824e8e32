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
}

func (a *API) usage(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var q user.UsageQuery
	query := newQuery(r)
	query.read("from", func(s string) (err error) { q.From, err = parseDate(s); return err })
	query.read("to", func(s string) (err error) { q.To, err = parseDate(s); return err })
	if err := query.err(); err != nil {
		return a.unknownFirst(r, id, err)
	}
	report, err := a.Users.Usage(r.Context(), id, q)
	if err != nil {
		return err
	}
	body := usageBody{TimeZone: report.Zone.String(), Days: make([]usageDayBody, len(report.Days))}
	for i, sum := range report.Sums {
		body.Days[i] = usageDayBody{report.Days[i].Format(time.DateOnly), sum.Charged, sum.Refunded}
		body.TotalCharged += sum.Charged
		body.TotalRefunded += sum.Refunded
	}
	return respond(w, http.StatusOK, body)
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
