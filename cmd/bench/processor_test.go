package main

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestOnCPU(t *testing.T) {
	t.Parallel()
	if ran, err := onCPU("42259632 28552576 103\n"); err != nil || ran != 42259632*time.Nanosecond {
		t.Errorf("got %s, %v", ran, err)
	}
	for _, text := range []string{"", "\n", "x 1 2"} {
		if _, err := onCPU(text); err == nil {
			t.Errorf("%q was taken for a schedstat", text)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	const stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 107665 416374331 0 67709 981 7277 150 25 10 -10 14 0 24 54702080 4904"
	got, err := parseStat(stat)
	if want := (processStat{parent: 3, ended: 1750 * time.Millisecond}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, text := range []string{"", "7 (a) S 3", "7 (a) S x 7 7 0 -1 4194560 107665 416374331 0 67709 981 7277 150 25 10", "7 (a) S 3 7 7 0 -1 4194560 107665 416374331 0 67709 981 7277 x 25 10"} {
		if _, err := parseStat(text); err == nil {
			t.Errorf("%q was taken for a stat", text)
		}
	}
}

// burn is a program that takes processor time in a child that ends and in one that says so and waits for a line. What sh
// runs behind its back has no standard input of its own.
const burn = `
exec 3<&0
sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'
sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; read line' <&3 &
wait
`

func TestTheTimeOfAFamilyHasChildrenThatRunAndThatHaveEnded(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", burn)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "done\n" {
		t.Fatalf("the children said %q, %v", line, err)
	}
	family, err := familyTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := threadsTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if stat.parent != os.Getpid() {
		t.Errorf("the parent is process %d", stat.parent)
	}
	running := family - alone - stat.ended
	if stat.ended <= 0 || running <= 0 {
		t.Errorf("the child that ended took %s, the one that runs %s", stat.ended, running)
	}
}

func TestTheTimeOfAProcessThatHasEndedIsNotKnown(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]func(int) (time.Duration, error){"threads": threadsTime, "family": familyTime} {
		if _, err := of(cmd.Process.Pid); !gone(err) {
			t.Errorf("%s: got %v, which is not %v", name, err, fs.ErrNotExist)
		}
	}
}
