package user

import "time"

// period numbers the calendar months of the reset time zone.
func (r Rules) period(t time.Time) int {
	year, month, _ := t.In(r.ResetZone).Date()
	return 12*year + int(month)
}

// latestPeriod is the period of t in the zone where a month begins first. The account may have been granted it where the
// reset zone was another one before.
func latestPeriod(t time.Time) int {
	return Rules{ResetZone: time.FixedZone("", 14*60*60)}.period(t)
}

// nextReset is the first instant of the period after t's.
func (r Rules) nextReset(t time.Time) time.Time {
	year, month, _ := t.In(r.ResetZone).Date()
	return r.dayStart(year, month+1, 1)
}

// dayStart is the first instant of a day in the reset time zone. Where clocks change at midnight that is neither
// always 00:00 nor what time.Date picks: midnight may not exist, or come twice.
func (r Rules) dayStart(year int, month time.Month, day int) time.Time {
	t := time.Date(year, month, day, 0, 0, 0, 0, r.ResetZone)
	candidates := []time.Time{t}
	if since, until := t.ZoneBounds(); !since.IsZero() {
		_, offset := t.Zone()
		_, before := since.Add(-1).Zone()
		earlier := t.Add(time.Duration(offset-before) * time.Second) // the same wall clock before the last change
		candidates = []time.Time{earlier, t, since, until}
	}
	wanted := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	for _, c := range candidates {
		if !civil(c, r.ResetZone).Before(wanted) && civil(c.Add(-1), r.ResetZone).Before(wanted) {
			return c.UTC()
		}
	}
	return t.UTC()
}

// civil is the date of t in a zone, as midnight UTC.
func civil(t time.Time, zone *time.Location) time.Time {
	year, month, day := t.In(zone).Date()
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

// lastGranted is the period whose allowance an account got last, by the instant of its last reset; 0 when it never had
// one.
func (r Rules) lastGranted(a Account, now time.Time) int {
	if a.LastReset == nil {
		return 0
	}
	return min(r.period(*a.LastReset), r.period(now))
}
