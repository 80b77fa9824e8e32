package localpgtest

import (
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Proxy stands between clients and a PostgreSQL server and knows what they say
// to each other, so that the network between them can fail at a chosen moment.
// Otherwise it passes everything on. It speaks no TLS.
type Proxy struct {
	url             string
	network, server string // where the server listens
	listener        net.Listener
	closing         chan struct{}
	running         sync.WaitGroup

	mu     sync.Mutex
	links  map[*link]struct{}
	closed bool
	// plans are the faults still to come; planned says whether there are any.
	plans   []*Plan
	planned atomic.Bool
}

// Moment is a point of the conversation: a message that is about to be passed
// on, after all that came before it was.
type Moment struct {
	kind momentKind
	sql  string
}

type momentKind int

const (
	connecting momentKind = iota
	before
	answer
)

// Connecting is when a client has sent its start-up message.
var Connecting = Moment{kind: connecting}

// Before is when a client has sent a statement that ends with sql, in whatever
// case, and the server does not have it yet.
func Before(sql string) Moment { return Moment{before, sql} }

// Answer is when the server has done a statement that ends with sql, in
// whatever case, and the client does not know yet.
func Answer(sql string) Moment { return Moment{answer, sql} }

func (m Moment) matches(kind momentKind, sql string) bool {
	end := len(sql) - len(m.sql)
	return m.kind == kind && end >= 0 && strings.EqualFold(sql[end:], m.sql)
}

// Fault is what the network does to the connection whose moment has come.
type Fault struct {
	kind  faultKind
	delay time.Duration
	// What is answered in place of the message.
	code, routine string
}

type faultKind int

const (
	cut faultKind = iota
	cutHalfway
	cutByPooler
	reset
	mute
	halfCloseClient
	halfCloseServer
	delay
	refuse
)

var (
	// Cut closes both sides; the message is lost.
	Cut = Fault{kind: cut}
	// CutHalfway is Cut in the middle of the message.
	CutHalfway = Fault{kind: cutHalfway}
	// CutByPooler is Cut, but the client is told as PgBouncer does when it loses
	// the server.
	CutByPooler = Fault{kind: cutByPooler}
	// Reset is Cut, but both sides get a reset in place of an end.
	Reset = Fault{kind: reset}
	// Mute keeps both sides open and lets nothing through any more, not even
	// that one of them has closed.
	Mute = Fault{kind: mute}
	// HalfCloseClient ends what the client receives; what it says is passed on.
	HalfCloseClient = Fault{kind: halfCloseClient}
	// HalfCloseServer ends what the server receives; what it says is passed on.
	HalfCloseServer = Fault{kind: halfCloseServer}
)

// Delay holds the message, and what comes after it, for that long.
func Delay(d time.Duration) Fault { return Fault{kind: delay, delay: d} }

// Refuse puts an error with this SQLSTATE, as from this routine of the server,
// in the place of an answer, though what was asked for has been done.
func Refuse(code, routine string) Fault {
	return Fault{kind: refuse, code: code, routine: routine}
}

// Plan is a fault that is to happen some times.
type Plan struct {
	moment Moment
	fault  Fault
	left   atomic.Int32
}

// Left returns how many times the fault has still to happen.
func (p *Plan) Left() int { return int(p.left.Load()) }

// NewProxy returns a proxy to the server of the connection string. It ends with
// the test, and all connections by way of it.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	config, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		url: withHost(dsn, listener.Addr().(*net.TCPAddr)), listener: listener,
		closing: make(chan struct{}), links: map[*link]struct{}{},
	}
	p.network, p.server = pgconn.NetworkAddress(config.Host, config.Port)
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// URL returns the connection string by way of the proxy.
func (p *Proxy) URL() string { return p.url }

// At makes the fault happen the next times that the moment comes, on whichever
// connection that is. Of several plans for a moment the first counts until it
// has happened often enough.
func (p *Proxy) At(m Moment, f Fault, times int) *Plan {
	plan := &Plan{moment: m, fault: f}
	plan.left.Store(int32(times))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plans = append(p.plans, plan)
	p.planned.Store(true)
	return plan
}

// CutAll closes all connections there are; new ones are let through.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// due takes the fault for a moment that has come, nil when there is none.
func (p *Proxy) due(kind momentKind, sql string) *Fault {
	if !p.planned.Load() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, plan := range p.plans {
		if !plan.moment.matches(kind, sql) {
			continue
		}
		if plan.left.Add(-1) == 0 {
			p.plans = append(p.plans[:i:i], p.plans[i+1:]...)
			p.planned.Store(len(p.plans) > 0)
		}
		return &plan.fault
	}
	return nil
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // it was closed
		}
		p.running.Go(func() { p.serve(client.(conn)) })
	}
}

func (p *Proxy) close() {
	p.listener.Close()
	close(p.closing)
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.CutAll()
	p.running.Wait()
}

// serve serves one connection to its end.
func (p *Proxy) serve(client conn) {
	dialed, err := net.DialTimeout(p.network, p.server, timeout)
	if err != nil {
		client.Close()
		return
	}
	server := dialed.(conn)
	l := &link{
		proxy: p, client: client, server: server,
		clientSays: pgproto3.NewBackend(client, nil),
		serverSays: pgproto3.NewFrontend(server, nil),
		toClient:   way{to: client}, toServer: way{to: server},
		prepared: map[string]string{}, portals: map[string]string{},
	}
	p.mu.Lock()
	p.links[l] = struct{}{}
	closed := p.closed
	p.mu.Unlock()
	defer func() {
		l.close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	if closed || l.logIn() != nil {
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() { l.until(l.request()) })
	ways.Go(func() { l.until(l.respond()) })
	ways.Wait()
}

// conn is a connection over TCP or a Unix socket.
type conn interface {
	net.Conn
	CloseWrite() error
}

// link is one connection by way of the proxy.
type link struct {
	proxy              *Proxy
	client, server     conn
	clientSays         *pgproto3.Backend
	serverSays         *pgproto3.Frontend
	toClient, toServer way
	// muted lets nothing through any more.
	muted atomic.Bool

	// The SQL of prepared statements and of portals, by name.
	prepared, portals map[string]string
	mu                sync.Mutex
	// asked is what the server has not answered yet.
	asked []question
}

// question is a statement to be done, or the end of some that are answered
// together.
type question struct {
	sql string
	end bool
}

// way is one direction of a link.
type way struct {
	to      conn
	pending []byte
	// ended says that its receiver was told that nothing comes any more.
	ended atomic.Bool
}

// message is what both sides' messages have in common.
type message interface {
	Encode(dst []byte) ([]byte, error)
}

func (w *way) flush() error {
	if len(w.pending) == 0 || w.ended.Load() {
		w.pending = w.pending[:0]
		return nil
	}
	_, err := w.to.Write(w.pending)
	w.pending = w.pending[:0]
	if w.ended.Load() {
		return nil // meanwhile
	}
	return err
}

func (w *way) end() error {
	w.ended.Store(true)
	return w.to.CloseWrite()
}

func (l *link) close() {
	l.client.Close()
	l.server.Close()
}

// until closes both sides at the end of a way, unless nothing gets through.
func (l *link) until(error) {
	if !l.muted.Load() {
		l.close()
	}
}

// errCut ends a link whose fault that is.
var errCut = errors.New("cut")

// pass passes a message on, with the next flush at the latest, and lets a fault
// happen to it.
func (l *link) pass(w *way, m message, f *Fault) error {
	if l.muted.Load() {
		return nil
	}
	var err error
	begin := len(w.pending)
	if w.pending, err = m.Encode(w.pending); err != nil || f == nil {
		return err
	}
	text := append([]byte(nil), w.pending[begin:]...)
	w.pending = w.pending[:begin]
	if f.kind == cutHalfway {
		w.pending = append(w.pending, text[:len(text)/2]...)
	}
	if err := w.flush(); err != nil {
		return err
	}
	switch f.kind {
	case cut, cutHalfway:
		return errCut
	case cutByPooler:
		text, err := (&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "server conn crashed?"}).Encode(nil)
		if err == nil {
			_, err = l.client.Write(text)
		}
		return errors.Join(errCut, err)
	case reset:
		for _, c := range []conn{l.client, l.server} {
			if tcp, ok := c.(*net.TCPConn); ok {
				err = errors.Join(err, tcp.SetLinger(0))
			}
		}
		return errors.Join(errCut, err)
	case mute:
		l.muted.Store(true)
		return nil
	case halfCloseClient:
		err = l.toClient.end()
	case halfCloseServer:
		err = l.toServer.end()
	case refuse:
		text, err = (&pgproto3.ErrorResponse{
			Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: f.code, Message: "refused by the proxy", Routine: f.routine,
		}).Encode(nil)
	case delay:
		select {
		case <-time.After(f.delay):
		case <-l.proxy.closing:
			err = errCut
		}
	}
	w.pending = append(w.pending, text...)
	return err
}

// logIn passes on all until the client may make requests. One side speaks at a
// time until then.
func (l *link) logIn() error {
	start, err := l.startUp()
	if err != nil {
		return err
	}
	if err := l.pass(&l.toServer, start, l.proxy.due(connecting, "")); err != nil {
		return err
	}
	if l.muted.Load() {
		_, err := io.Copy(io.Discard, l.client)
		return errors.Join(errCut, err)
	}
	if err := l.toServer.flush(); err != nil {
		return err
	}
	for {
		said, err := l.serverSays.Receive()
		if err != nil {
			return err
		}
		if err := l.pass(&l.toClient, said, nil); err != nil {
			return err
		}
		switch said.(type) {
		case *pgproto3.ReadyForQuery:
			return l.toClient.flush()
		case *pgproto3.AuthenticationCleartextPassword,
			*pgproto3.AuthenticationMD5Password,
			*pgproto3.AuthenticationSASL,
			*pgproto3.AuthenticationSASLContinue:
			if err := l.password(); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return errors.Join(errCut, l.toClient.flush())
		}
	}
}

// startUp returns the client's start-up message. A request to cancel is passed
// on and is all that its connection is for.
func (l *link) startUp() (message, error) {
	for {
		said, err := l.clientSays.ReceiveStartupMessage()
		if err != nil {
			return nil, err
		}
		switch said := said.(type) {
		case *pgproto3.StartupMessage:
			return said, nil
		case *pgproto3.CancelRequest:
			if err := l.pass(&l.toServer, said, nil); err != nil {
				return nil, err
			}
			if err := l.toServer.flush(); err != nil {
				return nil, err
			}
			_, err := io.Copy(io.Discard, l.server) // until it was done
			return nil, errors.Join(errCut, err)
		default: // it asks whether the connection may be encrypted
			if _, err := l.client.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		}
	}
}

// password passes on the client's answer to what the server last asked.
func (l *link) password() error {
	if err := l.toClient.flush(); err != nil {
		return err
	}
	if err := l.clientSays.SetAuthType(l.serverSays.GetAuthType()); err != nil {
		return err
	}
	said, err := l.clientSays.Receive()
	if err != nil {
		return err
	}
	if err := l.pass(&l.toServer, said, nil); err != nil {
		return err
	}
	return l.toServer.flush()
}

// request passes on what the client says.
func (l *link) request() error {
	for {
		said, err := l.clientSays.Receive()
		if err != nil {
			return err
		}
		var f *Fault
		flush := true
		switch m := said.(type) {
		case *pgproto3.Parse:
			l.prepared[m.Name] = m.Query
			flush = false
		case *pgproto3.Bind:
			sql := l.prepared[m.PreparedStatement]
			l.portals[m.DestinationPortal] = sql
			f = l.proxy.due(before, sql)
			flush = false
		case *pgproto3.Execute:
			l.ask(question{sql: l.portals[m.Portal]})
			flush = false
		case *pgproto3.Describe, *pgproto3.Close:
			flush = false
		case *pgproto3.Sync:
			l.ask(question{end: true})
		case *pgproto3.Query:
			l.ask(question{sql: m.String}, question{end: true})
			f = l.proxy.due(before, m.String)
		}
		if err := l.pass(&l.toServer, said, f); err != nil {
			return err
		}
		// What need not be answered waits for what comes with it.
		if flush {
			if err := l.toServer.flush(); err != nil {
				return err
			}
		}
	}
}

// respond passes on what the server says.
func (l *link) respond() error {
	for {
		said, err := l.serverSays.Receive()
		if err != nil {
			return err
		}
		var f *Fault
		switch said.(type) {
		case *pgproto3.CommandComplete:
			if sql := l.answered(); sql != "" {
				f = l.proxy.due(answer, sql)
			}
		case *pgproto3.EmptyQueryResponse, *pgproto3.PortalSuspended:
			l.answered()
		case *pgproto3.ReadyForQuery:
			l.answeredAll()
		}
		if err := l.pass(&l.toClient, said, f); err != nil {
			return err
		}
		if l.serverSays.ReadBufferLen() == 0 {
			if err := l.toClient.flush(); err != nil {
				return err
			}
		}
	}
}

func (l *link) ask(questions ...question) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, questions...)
}

// answered returns the SQL of the statement that the server says it has done.
// Of several in one query only the first is known.
func (l *link) answered() (sql string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) == 0 || l.asked[0].end {
		return ""
	}
	sql = l.asked[0].sql
	l.asked = l.asked[1:]
	return sql
}

// answeredAll forgets the statements of which the server says that it is done
// with them: after an error it skips the rest.
func (l *link) answeredAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.asked {
		if q.end {
			l.asked = l.asked[i+1:]
			return
		}
	}
}

// withHost returns the connection string with another host and port, as
// withDatabase does.
func withHost(dsn string, addr *net.TCPAddr) string {
	u, err := url.Parse(dsn)
	if err != nil || !strings.HasPrefix(u.Scheme, "postgres") {
		return dsn + " host=" + addr.IP.String() + " port=" + strconv.Itoa(addr.Port)
	}
	u.Host = addr.String()
	return u.String()
}
