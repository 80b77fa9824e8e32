package httpapi

import "testing"

// taken is how many of n slots a caller gets.
func (s *slots) takeUpTo(n int, caller string) (got int) {
	for range n {
		if s.take(caller) {
			got++
		}
	}
	return got
}

func TestOneCallerLeavesSlotsForOthers(t *testing.T) {
	t.Parallel()
	s := &slots{most: 1024, taken: map[string]int{}}
	if got := s.takeUpTo(5000, "greedy"); got != 896 {
		t.Errorf("one caller gets %d, want seven eighths", got)
	}
	for _, name := range []string{"a", "b", "c"} {
		if got := s.takeUpTo(40, name); got != 40 {
			t.Errorf("%s gets %d of the 40 that it wants", name, got)
		}
	}
	if got := s.takeUpTo(1, "greedy"); got != 0 {
		t.Error("the first one gets what is there for others")
	}
	if got := s.takeUpTo(40, "d"); got != 8 {
		t.Errorf("d gets %d of the 8 that are left", got)
	}
	if s.takeUpTo(1, "e") != 0 {
		t.Error("there were more than all")
	}
}

func TestSlotsThatComeFreeGoToWhoeverHasLess(t *testing.T) {
	t.Parallel()
	s := &slots{most: 64, taken: map[string]int{}}
	s.takeUpTo(1000, "greedy")
	s.takeUpTo(1000, "late")
	for range 1000 { // both want all, and the greedy one is always first
		s.free("greedy")
		s.takeUpTo(64, "greedy")
		s.takeUpTo(64, "late")
		if s.taken["late"] >= s.taken["greedy"] {
			break
		}
	}
	if greedy, late := s.taken["greedy"], s.taken["late"]; late < 64/3 || greedy < 64/3 {
		t.Errorf("the greedy one has %d, the late one %d", greedy, late)
	}
	for name, n := range map[string]int{"greedy": s.taken["greedy"], "late": s.taken["late"]} {
		for range n {
			s.free(name)
		}
	}
	if s.all != 0 || len(s.taken) != 0 {
		t.Errorf("all were given back, and %d are taken by %v", s.all, s.taken)
	}
}

func TestFewSlotsAreForWhoeverComesFirst(t *testing.T) {
	t.Parallel()
	s := &slots{most: 2, taken: map[string]int{}}
	if got := s.takeUpTo(3, "a"); got != 2 {
		t.Errorf("one caller gets %d of 2", got)
	}
}
