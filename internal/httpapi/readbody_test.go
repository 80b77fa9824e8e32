package httpapi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// reading is a server that answers with how many bytes of a body it has read.
func reading(t *testing.T) *httptest.Server {
	t.Helper()
	a := New(Options{Log: slog.New(slog.DiscardHandler), BodyTimeout: time.Minute})
	s := httptest.NewUnstartedServer(a.readBody(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := content(w, r)
		if again, failure := io.ReadAll(r.Body); !bytes.Equal(again, body) || failure != err {
			t.Errorf("%d bytes and %v are read as %d and %v", len(body), err, len(again), failure)
		}
		fmt.Fprintf(w, "%d %v", len(body), err)
	})))
	t.Cleanup(s.Close)
	return s
}

func TestABodyIsReadToItsEndHoweverItIsSent(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		s := reading(t)
		s.EnableHTTP2 = version == 2
		s.StartTLS()
		for _, size := range []int{1, smallBody - 1, smallBody, smallBody + 1, maxBody} {
			for form, body := range map[string]io.Reader{
				"with its length": strings.NewReader(strings.Repeat("x", size)),
				"piece by piece":  io.MultiReader(strings.NewReader("x"), strings.NewReader(strings.Repeat("x", size-1))),
			} {
				res, err := s.Client().Post(s.URL, "application/json", body)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(res.Body)
				if err = errors.Join(err, res.Body.Close()); err != nil || res.ProtoMajor != version || string(text) != fmt.Sprintf("%d <nil>", size) {
					t.Errorf("HTTP/%d: %d bytes %s are read as %q, %v", res.ProtoMajor, size, form, text, err)
				}
			}
		}
	}
}

func TestABodyThatBreaksOffIsNotTakenForAWholeOne(t *testing.T) {
	t.Parallel()
	s := reading(t)
	s.Start()
	for _, length := range []int{7, smallBody + 7} {
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", length, strings.Repeat("x", length-1))
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		if want := fmt.Sprintf("%d %v", length-1, io.ErrUnexpectedEOF); err != nil || string(text) != want {
			t.Errorf("it is read as %q, %v, want %q", text, err, want)
		}
	}
}
