package tumbler

import (
	"math"
	"testing"
	"time"
)

func TestAnInstantBeyondAllIsAlways(t *testing.T) {
	for _, c := range []struct{ instant, d, want time.Duration }{
		{1, 2, 3},
		{0, always, always},
		{1, always, always},
		{always, 1, always},
		{2, always - 2, always},
		{5, -7, -2},
		{1, math.MinInt64, math.MinInt64 + 1},
	} {
		if got := later(c.instant, c.d); got != c.want {
			t.Errorf("%v after %v is %v", c.d, c.instant, got)
		}
	}
}
