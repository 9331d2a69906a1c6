package interp

import (
	"context"
	"time"

	"go.starlark.net/starlark"
)

func sleepWord() *Word {
	return &Word{
		Name: "sleep",
		Doc:  "Waits. In a dry run it does not.",
		Params: []Param{
			{Name: "d", Type: "duration", Required: true, Pos: true, Doc: `how long: "10ms", "1.5s", "2m", or a duration of the time module`},
		},
		Errors: "A number without a unit, or a negative duration.",
		Example: `sleep("1ms")
sleep(2 * time.millisecond)
print("awake")`,
		Output: "awake\n",
		Fn:     sleep,
	}
}

func sleep(c *Call) (starlark.Value, error) {
	var d Duration
	if err := c.Unpack(&d); err != nil {
		return nil, err
	}
	if c.Dry() {
		return nil, nil
	}
	return nil, pause(c.Context(), time.Duration(d))
}

// pause waits for d to pass or ctx to end, and then returns the error that says so.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return canceled(ctx, nil)
}
