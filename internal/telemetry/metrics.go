package telemetry

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/viralpilot/user-management/internal/user"
)

// Metrics are the service's Prometheus metrics, in a registry of their own. No label names a user: their values are
// route patterns, codes and kinds, of which there are few.
type Metrics struct {
	registry *prometheus.Registry

	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	ended    func() // takes one from inFlight
	problems *prometheus.CounterVec

	mu       sync.RWMutex
	answered map[answer]answerSeries

	consumed, toppedUp, reserved, refunded prometheus.Counter
	resets                                 prometheus.Counter

	groupSize    prometheus.Histogram
	groupWait    prometheus.Histogram
	groupRetries prometheus.Counter

	sweepFailures *prometheus.CounterVec
	oldestDue     prometheus.Gauge
	open          prometheus.Gauge
}

// Tasks of the background, which fail each by itself.
const (
	SweepReservations = "reservations"
	SweepErases       = "erases"
	SweepUsage        = "usage"
)

// NewMetrics returns metrics that all stand at zero, for this version and commit. The codes are those that problems may
// have: each has its series from the start, since Prometheus sees no increase in one that begins with its first event.
func NewMetrics(version, commit string, codes []user.Code) *Metrics {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	factory := promauto.With(registry)
	factory.NewGaugeVec(prometheus.GaugeOpts{
		Name: "user_management_build_info", Help: "Version and commit of the running binary; always 1.",
	}, []string{"version", "commit"}).WithLabelValues(version, commit).Set(1)
	// From a lone update to a full second: what is beyond is an outage.
	seconds := []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5}
	m := &Metrics{
		registry: registry,
		requests: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests answered, by method, route pattern and status.",
		}, []string{"method", "route", "status"}),
		duration: factory.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_request_duration_seconds", Help: "Time to answer a request, by method and route pattern.", Buckets: seconds,
		}, []string{"method", "route"}),
		inFlight: factory.NewGauge(prometheus.GaugeOpts{
			Name: "http_requests_in_flight", Help: "Requests that are being answered.",
		}),
		problems: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "user_management_problems_total", Help: "Requests answered with a problem document, by its code.",
		}, []string{"code"}),
		consumed: factory.NewCounter(prometheus.CounterOpts{
			Name: "user_management_tokens_consumed_total", Help: "Tokens charged by consume and settle.",
		}),
		toppedUp: factory.NewCounter(prometheus.CounterOpts{
			Name: "user_management_tokens_topped_up_total", Help: "Tokens added as top-ups.",
		}),
		reserved: factory.NewCounter(prometheus.CounterOpts{
			Name: "user_management_tokens_reserved_total", Help: "Tokens set aside by reservations.",
		}),
		refunded: factory.NewCounter(prometheus.CounterOpts{
			Name: "user_management_tokens_refunded_total", Help: "Tokens given back by refunds.",
		}),
		resets: factory.NewCounter(prometheus.CounterOpts{
			Name: "user_management_monthly_resets_total", Help: "Monthly resets of accounts.",
		}),
		groupSize: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "user_management_commit_group_size", Help: "Updates that one transaction served.",
			Buckets: []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024},
		}),
		groupWait: factory.NewHistogram(prometheus.HistogramOpts{
			Name: "user_management_commit_group_wait_seconds", Help: "Time that the first update of a group waited to be taken.", Buckets: seconds,
		}),
		groupRetries: factory.NewCounter(prometheus.CounterOpts{
			Name: "user_management_commit_group_retries_total", Help: "Transactions that were tried again, after a deadlock or split in halves.",
		}),
		sweepFailures: factory.NewCounterVec(prometheus.CounterOpts{
			Name: "user_management_sweep_failures_total", Help: "Rounds of the sweep that failed, if only in part, by task.",
		}, []string{"task"}),
		oldestDue: factory.NewGauge(prometheus.GaugeOpts{
			Name: "user_management_oldest_due_reservation_age_seconds",
			Help: "How long ago the oldest reservation ran out that the last sweep has left open; 0 when it left none.",
		}),
		open: factory.NewGauge(prometheus.GaugeOpts{
			Name: "user_management_open", Help: "1 while nobody needs a key or a token, 0 otherwise.",
		}),
	}
	m.ended, m.answered = m.inFlight.Dec, map[answer]answerSeries{}
	for _, code := range codes {
		m.problems.WithLabelValues(string(code))
	}
	for _, task := range []string{SweepReservations, SweepErases, SweepUsage} {
		m.sweepFailures.WithLabelValues(task)
	}
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Begin counts a request as in flight until the returned function is called.
func (m *Metrics) Begin() (end func()) {
	m.inFlight.Inc()
	return m.ended
}

// answer is how a request was answered, and answerSeries are where that is counted.
type (
	answer struct {
		method, route string
		status        int
	}
	answerSeries struct {
		requests prometheus.Counter
		duration prometheus.Observer
	}
)

// Request counts an answered request. The route is its pattern; requests that match none share one label.
func (m *Metrics) Request(method, route string, status int, took time.Duration) {
	if route == "" {
		method, route = "other", "none" // both may be anything that a stranger sends
	}
	s := m.seriesOf(answer{method, route, status})
	s.requests.Inc()
	s.duration.Observe(took.Seconds())
}

// seriesOf keeps the series of each answer, of which there are few, so that their labels are looked up once.
func (m *Metrics) seriesOf(a answer) answerSeries {
	m.mu.RLock()
	s, known := m.answered[a]
	m.mu.RUnlock()
	if !known {
		s = answerSeries{m.requests.WithLabelValues(a.method, a.route, strconv.Itoa(a.status)), m.duration.WithLabelValues(a.method, a.route)}
		m.mu.Lock()
		m.answered[a] = s
		m.mu.Unlock()
	}
	return s
}

// Entry implements user.Observer.
func (m *Metrics) Entry(e user.Entry) {
	m.consumed.Add(float64(e.TokensCharged))
	switch e.Kind {
	case user.KindTopUp:
		m.toppedUp.Add(float64(e.Amount))
	case user.KindReserve:
		m.reserved.Add(float64(-e.Amount))
	case user.KindRefund:
		m.refunded.Add(float64(e.TokensRefunded))
	case user.KindMonthlyReset:
		m.resets.Inc()
	}
}

// Problem counts a request that was answered with a problem document.
func (m *Metrics) Problem(code user.Code) { m.problems.WithLabelValues(string(code)).Inc() }

// SweepFailed counts a round of the sweep whose task failed.
func (m *Metrics) SweepFailed(task string) { m.sweepFailures.WithLabelValues(task).Inc() }

// OldestDueReservation notes how long ago the oldest reservation ran out that is still open.
func (m *Metrics) OldestDueReservation(age time.Duration) { m.oldestDue.Set(age.Seconds()) }

// Open notes that nobody needs a key or a token.
func (m *Metrics) Open() { m.open.Set(1) }

// Issuer adds whether the keys of the token issuer could be fetched when that was last tried, which reachable returns
// whenever the metrics are read.
func (m *Metrics) Issuer(reachable func() bool) {
	promauto.With(m.registry).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "user_management_token_issuer_reachable",
		Help: "1 while the keys of the token issuer can be fetched, 0 otherwise.",
	}, func() float64 {
		if reachable() {
			return 1
		}
		return 0
	})
}

// Group counts a transaction that served size updates, the first of which had waited.
func (m *Metrics) Group(size int, wait time.Duration) {
	m.groupSize.Observe(float64(size))
	m.groupWait.Observe(wait.Seconds())
}

// Retry counts a transaction that was tried again.
func (m *Metrics) Retry() { m.groupRetries.Inc() }

// Certificate adds when the service's TLS certificate expires, and how often a changed one could not be used; both are
// called whenever the metrics are read.
func (m *Metrics) Certificate(expires func() time.Time, failures func() int64) {
	factory := promauto.With(m.registry)
	factory.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "user_management_tls_certificate_expires_timestamp_seconds", Help: "When the service's TLS certificate expires, in seconds since 1970.",
	}, func() float64 { return float64(expires().Unix()) })
	factory.NewCounterFunc(prometheus.CounterOpts{
		Name: "user_management_tls_certificate_failures_total", Help: "Renewed TLS certificates that could not be used.",
	}, func() float64 { return float64(failures()) })
}

// KeyExpiries adds a gauge for each API key that expires, by its name; read is called whenever the metrics are read.
func (m *Metrics) KeyExpiries(read func() map[string]time.Time) {
	m.registry.MustRegister(keyExpiries{read})
}

type keyExpiries struct{ read func() map[string]time.Time }

var keyExpiry = prometheus.NewDesc("user_management_api_key_expires_timestamp_seconds",
	"When an API key stops being accepted, in seconds since 1970, by its name; keys that do not expire have none.", []string{"key"}, nil)

// Describe implements prometheus.Collector.
func (keyExpiries) Describe(ch chan<- *prometheus.Desc) { ch <- keyExpiry }

// Collect implements prometheus.Collector.
func (k keyExpiries) Collect(ch chan<- prometheus.Metric) {
	for name, at := range k.read() {
		ch <- prometheus.MustNewConstMetric(keyExpiry, prometheus.GaugeValue, float64(at.Unix()), name)
	}
}

// ClockOffset adds how far the service's clock is ahead of the database's, which read returns whenever the metrics are
// read.
func (m *Metrics) ClockOffset(read func() time.Duration) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "user_management_clock_offset_seconds",
		Help: "How far the service's clock is ahead of the database's, by which accounts are judged; negative when it is behind.",
	}, func() float64 { return read().Seconds() }))
}

// FeedLag adds how long the feed keeps entries back, which read returns whenever the metrics are read.
func (m *Metrics) FeedLag(read func() time.Duration) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "user_management_feed_lag_seconds",
		Help: "How long the feed of all entries has kept some back for a transaction that began before them and has not ended.",
	}, func() float64 { return read().Seconds() }))
}

// FoldLag adds how long the usage has been behind the ledger, which read returns whenever the metrics are read.
func (m *Metrics) FoldLag(read func() time.Duration) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "user_management_usage_fold_lag_seconds",
		Help: "How long the usage that is added up has been behind the entries that are settled.",
	}, func() float64 { return read().Seconds() }))
}

// PoolStats are the figures of a connection pool.
type PoolStats struct {
	// Acquired, Idle and Max are connections.
	Acquired, Idle, Max int32
	// Waits and WaitTime are acquisitions that had to wait, and how long all of them took, since the start.
	Waits    int64
	WaitTime time.Duration
}

// Pool adds the figures of the database pool, which stats reads whenever the metrics are.
func (m *Metrics) Pool(stats func() PoolStats) {
	m.registry.MustRegister(pool{stats})
}

type pool struct{ stats func() PoolStats }

var (
	poolConns = prometheus.NewDesc("user_management_db_pool_connections", "Connections of the database pool, by state.", []string{"state"}, nil)
	poolMax   = prometheus.NewDesc("user_management_db_pool_max_connections", "Most connections that the database pool may have.", nil, nil)
	poolWaits = prometheus.NewDesc("user_management_db_pool_waits_total", "Times that a connection had to be waited for.", nil, nil)
	poolWait  = prometheus.NewDesc("user_management_db_pool_wait_seconds_total", "Time spent waiting for connections.", nil, nil)
)

// Describe implements prometheus.Collector.
func (pool) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{poolConns, poolMax, poolWaits, poolWait} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p pool) Collect(ch chan<- prometheus.Metric) {
	s := p.stats()
	ch <- prometheus.MustNewConstMetric(poolConns, prometheus.GaugeValue, float64(s.Acquired), "acquired")
	ch <- prometheus.MustNewConstMetric(poolConns, prometheus.GaugeValue, float64(s.Idle), "idle")
	ch <- prometheus.MustNewConstMetric(poolMax, prometheus.GaugeValue, float64(s.Max))
	ch <- prometheus.MustNewConstMetric(poolWaits, prometheus.CounterValue, float64(s.Waits))
	ch <- prometheus.MustNewConstMetric(poolWait, prometheus.CounterValue, s.WaitTime.Seconds())
}
