package user

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Usage is what was charged and refunded in a stretch of time.
type Usage struct {
	Charged, Refunded int64
	// Entries are the consumes and settles that charged tokens.
	Entries int64
	// Users are the accounts that they charged; of all accounts together only.
	Users int64
}

func (u *Usage) add(v Usage) {
	u.Charged, u.Refunded, u.Entries = u.Charged+v.Charged, u.Refunded+v.Refunded, u.Entries+v.Entries
}

// UsageQuery selects whole days of the reset time zone. Only the date of From and To counts, both inclusive; zero
// means the last day of the present period for To, and the first day of To's month for From.
type UsageQuery struct {
	From, To time.Time
	// By is the dimension whose values are told apart; empty for none.
	By string
}

const (
	// TierDimension tells usage by the tiers of the accounts; of all accounts together only.
	TierDimension = "tier"
	// OtherValue has the usage of values for whose names there is no room.
	OtherValue = "other"
	// topValues is how many values of a report have their names.
	topValues = 50
)

// UsageReport has each day, those without usage included.
type UsageReport struct {
	Zone *time.Location
	Days []UsageDay
}

// UsageDay is the usage of one day.
type UsageDay struct {
	// Date is the day, as midnight UTC.
	Date time.Time
	Usage
	// Values are those of the dimension that was asked for, where there was any usage: the largest of the report first,
	// then OtherValue, and what has none.
	Values []ValueUsage
}

// ValueUsage is the usage with one value of a dimension; nil stands for usage that has none.
type ValueUsage struct {
	Value *string
	Usage
}

// MaxUsageDays is the most days of one report.
const MaxUsageDays = 366

// UsageDays selects days, and what of them.
type UsageDays struct {
	// Days are dates, as midnight UTC, in their order. Each is the time from its element of Bounds (inclusive) to the next
	// one (exclusive), so there is one more of these.
	Days, Bounds []time.Time
	// Dimension tells values apart; empty for none.
	Dimension string
	// Top is how many of them have their names.
	Top int
}

// UsageRow is the usage of a day with a value, or all usage of the day where the value is nil.
type UsageRow struct {
	Day   time.Time
	Value *string
	Usage
}

// usageDays lists the days that q selects, or says what is wrong with it.
func (r Rules) usageDays(q UsageQuery, now time.Time) (UsageDays, error) {
	from, to := civil(q.From, time.UTC), civil(q.To, time.UTC)
	if q.To.IsZero() {
		year, month, _ := now.In(r.ResetZone).Date()
		to = time.Date(year, month+1, 0, 0, 0, 0, 0, time.UTC)
	}
	if q.From.IsZero() {
		from = to.AddDate(0, 0, 1-to.Day())
	}
	if from.After(to) {
		return UsageDays{}, invalid("from", "must not be after to")
	}
	var days []time.Time
	for day := from; !day.After(to); day = day.AddDate(0, 0, 1) {
		if days = append(days, day); len(days) > MaxUsageDays {
			return UsageDays{}, invalid("from", fmt.Sprintf("must be at most %d days before to", MaxUsageDays-1))
		}
	}
	return UsageDays{Days: days, Bounds: r.bounds(days), Dimension: q.By, Top: topValues}, nil
}

// Days returns the time from the beginning of a date, in the reset time zone, to the end of another one.
func (r Rules) Days(from, to time.Time) (since, until time.Time) {
	return r.dayStart(from.Date()), r.dayStart(to.AddDate(0, 0, 1).Date())
}

// bounds are where days begin, and where the last one ends.
func (r Rules) bounds(days []time.Time) []time.Time {
	bounds := make([]time.Time, 0, len(days)+1)
	for _, day := range days {
		bounds = append(bounds, r.dayStart(day.Date()))
	}
	return append(bounds, r.dayStart(days[len(days)-1].AddDate(0, 0, 1).Date()))
}

// daysAround returns the days of the reset zone that instants on dates of UTC, given as midnight, may be on.
func (r Rules) daysAround(dates []time.Time) UsageDays {
	var days []time.Time
	for _, date := range dates {
		days = append(days, date.AddDate(0, 0, -1), date, date.AddDate(0, 0, 1))
	}
	slices.SortFunc(days, time.Time.Compare)
	days = slices.Compact(days)
	return UsageDays{Days: days, Bounds: r.bounds(days)}
}

// report puts the rows of a query together.
func (r Rules) report(q UsageDays, rows []UsageRow) UsageReport {
	report := UsageReport{Zone: r.ResetZone, Days: make([]UsageDay, len(q.Days))}
	place := make(map[time.Time]int, len(q.Days))
	for i, day := range q.Days {
		report.Days[i].Date = day
		place[day] = i
	}
	total := map[string]int64{}
	for _, row := range rows {
		day := &report.Days[place[row.Day]]
		if row.Value == nil {
			day.Usage = row.Usage
			continue
		}
		row.Users = 0
		day.Values = append(day.Values, ValueUsage{row.Value, row.Usage})
		total[*row.Value] += row.Charged
	}
	if q.Dimension == "" {
		return report
	}
	for i := range report.Days {
		report.Days[i].complete(total)
	}
	return report
}

// complete adds what has no value, and puts the values in the order of their totals.
func (d *UsageDay) complete(total map[string]int64) {
	var known Usage
	for _, v := range d.Values {
		known.add(v.Usage)
	}
	none := Usage{
		Charged: max(0, d.Charged-known.Charged), Refunded: max(0, d.Refunded-known.Refunded), Entries: max(0, d.Entries-known.Entries),
	}
	d.Values = slices.DeleteFunc(d.Values, func(v ValueUsage) bool { return v.Usage == Usage{} })
	slices.SortFunc(d.Values, func(a, b ValueUsage) int {
		switch {
		case *a.Value == OtherValue:
			return 1
		case *b.Value == OtherValue:
			return -1
		case total[*a.Value] != total[*b.Value]:
			return int(min(max(total[*b.Value]-total[*a.Value], -1), 1))
		}
		return strings.Compare(*a.Value, *b.Value)
	})
	if none != (Usage{}) {
		d.Values = append(d.Values, ValueUsage{nil, none})
	}
}
