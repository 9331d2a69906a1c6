package kernel

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ParseSignal reads a signal: "TERM", "SIGTERM", "term" or "15".
func ParseSignal(name string) (unix.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= 64 {
		return unix.Signal(n), nil
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if n := unix.SignalNum(upper); n != 0 {
		return n, nil
	}
	return 0, bad("kill", "signal", name, `a signal as "TERM" or 15`)
}

// SignalName is a signal's name without SIG; "" for a number without one.
func SignalName(n int) string {
	return strings.TrimPrefix(unix.SignalName(unix.Signal(n)), "SIG")
}
