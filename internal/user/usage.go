package user

import (
	"fmt"
	"time"
)

// Usage is what was charged and refunded in a stretch of time.
type Usage struct {
	Charged, Refunded int64
}

// UsageQuery selects whole days of the reset time zone. Only the date of From and To counts, both inclusive; zero
// means the last day of the present period for To, and the first day of To's month for From.
type UsageQuery struct {
	From, To time.Time
}

// UsageReport has the sums of each day, those without usage included.
type UsageReport struct {
	Zone *time.Location
	// Days are dates, as midnight UTC, and Sums what happened on each.
	Days []time.Time
	Sums []Usage
}

// MaxUsageDays is the most days of one report.
const MaxUsageDays = 366

// usageDays lists the days that q selects, or says what is wrong with it.
func (r Rules) usageDays(q UsageQuery, now time.Time) ([]time.Time, error) {
	from, to := civil(q.From, time.UTC), civil(q.To, time.UTC)
	if q.To.IsZero() {
		year, month, _ := now.In(r.ResetZone).Date()
		to = time.Date(year, month+1, 0, 0, 0, 0, 0, time.UTC)
	}
	if q.From.IsZero() {
		from = to.AddDate(0, 0, 1-to.Day())
	}
	if from.After(to) {
		return nil, invalid("from", "must not be after to")
	}
	var days []time.Time
	for day := from; !day.After(to); day = day.AddDate(0, 0, 1) {
		if days = append(days, day); len(days) > MaxUsageDays {
			return nil, invalid("from", fmt.Sprintf("must be at most %d days before to", MaxUsageDays-1))
		}
	}
	return days, nil
}
