package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"

	"github.com/jackc/pgx/v5"
)

// The floor server does the least that an answer to the service's requests takes: bare net/http, JSON, and for all
// consumes that wait one batch of an UPDATE and an INSERT, over one connection. It knows no rules, refuses nothing, logs
// and counts nothing. What the service costs is measured in multiples of it.

// createOwnTables makes copies of the service's tables in a schema of their own, which pgbench and the floor server may change
// as they like.
func createOwnTables(accounts int) []string {
	return []string{
		`CREATE SCHEMA bench`,
		`CREATE TABLE bench.userdata (LIKE viralpilot.userdata INCLUDING ALL)`,
		`CREATE TABLE bench.ledger (LIKE viralpilot.ledger INCLUDING ALL)`,
		fmt.Sprintf(`INSERT INTO bench.userdata SELECT * FROM viralpilot.userdata WHERE cognito_user_id LIKE 'user-%%'
			ORDER BY length(cognito_user_id), cognito_user_id LIMIT %d`, accounts),
		fmt.Sprintf(`INSERT INTO bench.ledger OVERRIDING SYSTEM VALUE SELECT * FROM viralpilot.ledger WHERE cognito_user_id LIKE 'user-%%'
			ORDER BY entry_id LIMIT %d`, accounts),
		`SELECT setval(pg_get_serial_sequence('bench.ledger', 'entry_id'), (SELECT max(entry_id) FROM bench.ledger))`,
		`GRANT USAGE ON SCHEMA bench TO ` + pgbenchRole,
		`GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA bench TO ` + pgbenchRole,
		`VACUUM ANALYZE bench.userdata, bench.ledger`,
	}
}

const (
	floorUpdate = `UPDATE bench.userdata u SET tokens_remaining = tokens_remaining - n.tokens,
			tokens_used_this_month = tokens_used_this_month + n.tokens, updated_at = clock_timestamp()
		FROM unnest($1::text[], $2::integer[]) AS n (id, tokens)
		WHERE u.cognito_user_id = n.id AND u.cognito_user_id = ANY($1)
		RETURNING u.cognito_user_id, u.tokens_remaining, u.tokens_used_this_month`
	floorInsert = `INSERT INTO bench.ledger (cognito_user_id, kind, amount, balance_after, used_after, tokens_charged%s, created_at)
		SELECT id, 'consume', -tokens, 0, 0, tokens%s, clock_timestamp()
		FROM unnest($1::text[], $2::integer[]) AS n (id, tokens) RETURNING entry_id`
)

// ownLedger are the columns, and the values for them, that a ledger of the service's present form asks for beside those
// it always had.
func (s *subject) ownLedger() (columns, values string) {
	if s.periods {
		return ", top_ups_amount, period", ", 0, 24320"
	}
	return "", ""
}

// useOwnTables makes the tables before they are first used.
func (s *subject) useOwnTables(ctx context.Context) error {
	if s.ownTables {
		return nil
	}
	s.ownTables = true
	return s.sql(ctx, s.database, createOwnTables(s.accounts)...)
}

// startFloor starts the floor server, this program once more, where that has not been done yet.
func (s *subject) startFloor(ctx context.Context) (*process, error) {
	if s.floor != nil {
		return s.floor, nil
	}
	if err := s.useOwnTables(ctx); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	columns, values := s.ownLedger()
	cmd := exec.Command(self, "floor", "127.0.0.1:"+port, fmt.Sprintf(floorInsert, columns, values))
	cmd.Env = []string{"DATABASE_URL=" + s.server.URL(s.database)}
	s.floor, err = s.launch(ctx, cmd, port)
	return s.floor, err
}

// charge is a consume that waits for its group. The answer is sent into done, which has room for it.
type charge struct {
	id     string
	tokens int
	done   chan<- charged
}

// charged is what a consume is answered with.
type charged struct {
	ID        string `json:"cognito_user_id"`
	Remaining int    `json:"tokens_remaining"`
	Used      int    `json:"tokens_used_this_month"`
	Entry     int64  `json:"entry_id"`
	err       error
}

// serveFloor is the floor server: it answers at the address until the context ends.
func serveFloor(ctx context.Context, address, insert string) error {
	// As the service does.
	debug.SetGCPercent(200)
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	waiting := make(chan charge)
	var mux http.ServeMux
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"status":"ok"}`))
	})
	mux.HandleFunc("POST /user/{id}/consume-tokens", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Tokens int `json:"tokens_to_consume"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		done := make(chan charged, 1)
		waiting <- charge{id: r.PathValue("id"), tokens: body.Tokens, done: done}
		answer := <-done
		if answer.err != nil {
			http.Error(w, answer.err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(answer)
	})
	server := http.Server{Addr: address, Handler: &mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	go func() {
		for first := range waiting {
			group := []charge{first}
			for more := true; more && len(group) < 256; {
				select {
				case c := <-waiting:
					group = append(group, c)
				default:
					more = false
				}
			}
			serveGroup(context.WithoutCancel(ctx), conn, insert, group)
		}
	}()
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveGroup charges all in one round trip and transaction, and answers them.
func serveGroup(ctx context.Context, conn *pgx.Conn, insert string, group []charge) {
	ids, tokens := make([]string, len(group)), make([]int, len(group))
	sums := map[string]int{}
	for i, c := range group {
		ids[i], tokens[i] = c.id, c.tokens
		sums[c.id] += c.tokens
	}
	changedIDs, changes := make([]string, 0, len(sums)), make([]int, 0, len(sums))
	for id, sum := range sums {
		changedIDs, changes = append(changedIDs, id), append(changes, sum)
	}
	accounts := map[string]charged{}
	entries := make([]int64, 0, len(group))
	var batch pgx.Batch
	batch.Queue(floorUpdate, changedIDs, changes).Query(func(rows pgx.Rows) error {
		var c charged
		_, err := pgx.ForEachRow(rows, []any{&c.ID, &c.Remaining, &c.Used}, func() error {
			accounts[c.ID] = c
			return nil
		})
		return err
	})
	batch.Queue(insert, ids, tokens).Query(func(rows pgx.Rows) (err error) {
		entries, err = pgx.AppendRows(entries, rows, pgx.RowTo[int64])
		return err
	})
	err := conn.SendBatch(ctx, &batch).Close()
	if err == nil && len(entries) != len(group) {
		err = fmt.Errorf("%d entries were written for %d requests", len(entries), len(group))
	}
	for i, c := range group {
		answer := accounts[c.id]
		answer.err = err
		if err == nil {
			answer.Entry = entries[i]
		}
		c.done <- answer
	}
}
