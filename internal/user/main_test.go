package user_test

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// More sequences than the 100 that rapid draws of itself; -rapid.checks on the command line wins.
	if err := flag.Set("rapid.checks", "200"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}
