package main

import "testing"

const wrkOutput = `Running 5s test @ http://127.0.0.1:40001
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.99ms    3.21ms  40.11ms   81.50%
    Req/Sec    10.90k     0.99k   13.01k    66.00%
  Latency Distribution
     50%  500.00us
     75%    7.35ms
     90%    9.55ms
     99%    1.02s 
  54321 requests in 5.01s, 21.40MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 90
Requests/sec:  10842.51
Transfer/sec:      4.27MB
`

func TestParseWrk(t *testing.T) {
	t.Parallel()
	got, err := parseWrk(wrkOutput)
	if want := (result{Rate: 10842.51, P50: 0.5, P99: 1020, Failed: 100, requests: 54321}); err != nil || got != want {
		t.Errorf("got %#v, %v", got, err)
	}
	if _, err := parseWrk("unable to connect to 127.0.0.1:40001"); err == nil {
		t.Error("an error message was taken for figures")
	}
}

func TestParsePgbench(t *testing.T) {
	t.Parallel()
	const out = "number of clients: 64\nnumber of transactions actually processed: 25345\nnumber of failed transactions: 0 (0.000%)\n" +
		"latency average = 12.624 ms\ninitial connection time = 210.312 ms\ntps = 5069.791270 (without initial connection time)\n"
	got, err := parsePgbench(out)
	if want := (result{Rate: 5069.79127, requests: 25345}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, out := range []string{"pgbench: error: connection failed", "number of transactions actually processed: 0\n", "number of transactions actually processed: 7\n"} {
		if _, err := parsePgbench(out); err == nil {
			t.Errorf("%q was taken for figures", out)
		}
	}
}
