package postgres_test

import (
	"context"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/viralpilot/user-management/internal/localpg/localpgtest"
	"github.com/viralpilot/user-management/internal/postgres"
	"github.com/viralpilot/user-management/internal/user"
)

// proxy stands between a store and its database.
type proxy struct {
	net.Listener
	server string
	// mute makes what the server says get lost.
	mute    atomic.Bool
	mu      sync.Mutex
	conns   []net.Conn
	running sync.WaitGroup
}

// through returns a proxy to the database and the URL by way of it.
func through(t *testing.T, dsn string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: listen(t), server: u.Host}
	p.running.Go(func() {
		for {
			client, err := p.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", p.server)
			if err != nil {
				client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			p.mu.Unlock()
			p.running.Go(func() { forward(server, client, nil) })
			p.running.Go(func() { forward(client, server, &p.mute) })
		}
	})
	t.Cleanup(func() {
		p.Close()
		p.cut()
		p.running.Wait()
	})
	u.Host = p.Addr().String()
	return p, u.String()
}

// forward copies until one side is closed, and then closes both.
func forward(to, from net.Conn, mute *atomic.Bool) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if mute != nil && mute.Load() {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// cut closes all connections; new ones are let through again.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
	p.mute.Store(false)
}

func TestAConnectionThatIsLostDuringTheCommit(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"with a key": "k", "without a key": ""} {
		// The rule is Service.Consume's: under its key it is done once however often it runs.
		consume := func(s *user.Service) error {
			_, err := s.Consume(t.Context(), "u", user.Consume{Tokens: 1, Meta: user.Meta{IdempotencyKey: key}})
			return err
		}
		const consumes = "SELECT count(*) FROM viralpilot.ledger WHERE kind = 'consume'"

		t.Run(name+" after it was done", func(t *testing.T) {
			t.Parallel()
			dsn := localpgtest.New(t)
			p, url := through(t, dsn)
			store, db := open(t, url, func(o *postgres.Options) { o.MaxConns = 1 }), connect(t, dsn)
			create(t, store, "u", 100)
			s := service(t, muting{store, sync.OnceFunc(func() { p.mute.Store(true) })})
			updated := background(t, func() error { return consume(s) })
			await(t, "the commit is done", func() bool { return query[int](db, consumes) == 1 })
			p.cut()
			switch err := <-updated; {
			case key != "" && err != nil:
				t.Errorf("got %v", err)
			case key == "":
				wantError(t, err, user.ErrDatabaseUnavailable)
			}
			if n := query[int](db, consumes); n != 1 {
				t.Errorf("done %d times", n)
			}
		})
		t.Run(name+" before it was done", func(t *testing.T) {
			t.Parallel()
			dsn := localpgtest.New(t)
			store, db := open(t, dsn, func(o *postgres.Options) { o.MaxConns = 1 }), connect(t, dsn)
			create(t, store, "u", 100)
			pass := db.gate()
			updated := background(t, func() error { return consume(service(t, store)) })
			db.awaitGated()
			db.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'user-management'")
			pass()
			err := <-updated
			if key == "" || err != nil {
				wantError(t, err, user.ErrDatabaseUnavailable)
			}
			want := 1
			if err != nil {
				want = 0
			}
			if n := query[int](db, consumes); n != want {
				t.Errorf("done %d times after %v", n, err)
			}
		})
	}
}

// muting is a store whose updates lose what the database says after their rule has run.
type muting struct {
	user.Store
	mute func()
}

func (m muting) Update(ctx context.Context, ref user.Ref, apply func(user.State) (user.Change, error)) (user.Change, error) {
	return m.Store.Update(ctx, ref, func(s user.State) (user.Change, error) {
		defer m.mute()
		return apply(s)
	})
}
