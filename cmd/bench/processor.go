package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tick is the unit of the times in /proc/PID/stat, which Linux shows as hundredths of a second on every machine.
const tick = 10 * time.Millisecond

// onCPU reads a schedstat file of /proc: how long that thread has run.
func onCPU(schedstat string) (time.Duration, error) {
	ran, _, _ := strings.Cut(schedstat, " ")
	ns, err := strconv.ParseInt(ran, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not what schedstat has: %w", schedstat, err)
	}
	return time.Duration(ns), nil
}

// processStat is what is wanted of a stat file of /proc.
type processStat struct {
	parent int
	// ended is the time of the children that have ended and been waited for.
	ended time.Duration
}

func parseStat(stat string) (s processStat, err error) {
	// The name, in parentheses, may contain anything; what follows begins with the third field.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 15 {
		return s, fmt.Errorf("%q is not what stat has", stat)
	}
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return s, err
	}
	for _, field := range fields[13:15] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return s, err
		}
		s.ended += time.Duration(ticks) * tick
	}
	return s, nil
}

func readStat(pid int) (processStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	return parseStat(string(text))
}

// threadsTime is how long all threads of the process have run.
func threadsTime(pid int) (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	if len(files) == 0 {
		return 0, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if gone(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		ran, err := onCPU(string(text))
		if err != nil {
			return 0, err
		}
		sum += ran
	}
	return sum, nil
}

// familyTime is how long a process, its children, and those of them that have ended by now have run.
func familyTime(pid int) (time.Duration, error) {
	for {
		before, err := readStat(pid)
		if err != nil {
			return 0, err
		}
		sum, err := threadsTime(pid)
		if err != nil {
			return 0, err
		}
		files, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			return 0, err
		}
		for _, file := range files {
			child, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				return 0, err
			}
			stat, err := readStat(child)
			if gone(err) || err == nil && stat.parent != pid {
				continue
			}
			if err != nil {
				return 0, err
			}
			ran, err := threadsTime(child)
			if gone(err) {
				continue
			}
			if err != nil {
				return 0, err
			}
			sum += ran
		}
		after, err := readStat(pid)
		if err != nil {
			return 0, err
		}
		// Else one has ended meanwhile, and may have been counted twice or not at all.
		if before.ended == after.ended {
			return sum + after.ended, nil
		}
	}
}

// gone reports that a process or a thread has ended since it was listed.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
