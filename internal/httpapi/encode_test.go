package httpapi

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"
)

// fill gives everything that v is made of a value drawn at random, none at all among them.
func fill(r *rand.Rand, v reflect.Value) {
	texts := []string{"", "user-1", "a b~", "é😀", `"\/<>&`, "\x00\t\n\x1f\x7f", "\u2028\u2029\ufffd", "\xff\xc3"}
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		first, last := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)
		at := time.Unix(first.Unix()+r.Int64N(last.Unix()-first.Unix()), []int64{0, 1, 999, 1000, 120_000_000, 999_999_000, 999_999_999, r.Int64N(1e9)}[r.IntN(8)])
		v.Set(reflect.ValueOf(at.In(time.FixedZone("", 3600*r.IntN(3)))))
		return
	case reflect.TypeFor[json.RawMessage]():
		if r.IntN(3) > 0 {
			v.SetBytes([]byte([]string{`{}`, `{"model":"a b","note":"\"\\\\"}`, `{"tier":{"from":"free","to":null}}`}[r.IntN(3)]))
		}
		return
	case reflect.TypeFor[map[string]string]():
		if notes := map[string]string{}; r.IntN(3) > 0 {
			for range r.IntN(4) {
				notes[texts[r.IntN(len(texts))]] = texts[r.IntN(len(texts))]
			}
			v.Set(reflect.ValueOf(notes))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	case reflect.Slice:
		if r.IntN(3) > 0 {
			v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 3))
			for i := range v.Len() {
				fill(r, v.Index(i))
			}
		}
	case reflect.Pointer:
		if r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem())
		}
	case reflect.String:
		v.SetString(texts[r.IntN(len(texts))])
	case reflect.Int64:
		v.SetInt([]int64{0, 1, -1, 1<<63 - 1, -1 << 63, r.Int64()}[r.IntN(6)])
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	default:
		panic("nothing fills a " + v.Kind().String())
	}
}

func TestBodiesWriteThemselvesAsEncodingJSONDoes(t *testing.T) {
	t.Parallel()
	const seed = 15
	r := rand.New(rand.NewPCG(seed, seed))
	for _, body := range []appender{userBody{}, receiptBody{}, consumeBody{}, statusBody{}, reservationReceiptBody{}, ledgerBody{}, feedBody{}, feedEntryBody{}} {
		for range 2000 {
			v := reflect.New(reflect.TypeOf(body)).Elem()
			fill(r, v)
			got, want := httptest.NewRecorder(), httptest.NewRecorder()
			if err := respondWith(got, http.StatusOK, v.Interface().(appender)); err != nil {
				t.Fatal(err)
			}
			if err := respond(want, http.StatusOK, v.Interface()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Body.Bytes(), want.Body.Bytes()) || !reflect.DeepEqual(got.Header(), want.Header()) {
				t.Fatalf("%+v is written\n%s, not\n%s", v, got.Body, want.Body)
			}
		}
	}
}

func TestWithoutBlanks_KeepsThoseInTexts(t *testing.T) {
	t.Parallel()
	for stored, want := range map[string]string{
		`{"model": "a b", "note": "c, \\"d\\": e"}`: `{"model":"a b","note":"c, \\"d\\": e"}`,
		`{"path": "a\\\\", "next": " "}`:            `{"path":"a\\\\","next":" "}`,
		"{\n\t}":                                    `{}`,
		``:                                          ``,
	} {
		if got := string(withoutBlanks([]byte(stored))); got != want {
			t.Errorf("%s becomes %s, want %s", stored, got, want)
		}
	}
}

func TestTimestampsHaveSixDigits(t *testing.T) {
	t.Parallel()
	const seed = 16
	r := rand.New(rand.NewPCG(seed, seed))
	for range 10_000 {
		var at time.Time
		fill(r, reflect.ValueOf(&at).Elem())
		if got, want := string(timestamp{at}.appendTo(nil)), `"`+at.UTC().Format(timestampLayout)+`"`; got != want {
			t.Fatalf("%v is written %s, not %s", at, got, want)
		}
	}
}
