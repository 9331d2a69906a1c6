package kernel

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

func BenchmarkLife(b *testing.B) {
	h, err := NewHost(fmt.Sprintf("/run/msh-bench-%d", os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	l, _ := h.NewLab("bench", false)
	defer l.Close(context.Background())
	max := int64(256 << 20)
	var fork, run, destroy time.Duration
	for b.Loop() {
		t0 := time.Now()
		m, err := l.Fork(context.Background(), l.Host(), &Spec{Resources: []Resource{space("pidspace"), space("ipcspace"), space("netspace"), overlay(),
			&Uname{Nodename: "box"}, &CPU{Quota: 50}, &Memory{Max: &max}, &Pids{Max: 32}}})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if _, err := m.Run(context.Background(), &Command{Argv: []string{"/bin/true"}}, nil, 0); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if err := m.Destroy(context.Background()); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		fork += t1.Sub(t0)
		run += t2.Sub(t1)
		destroy += t3.Sub(t2)
	}
	n := float64(b.N)
	b.ReportMetric(fork.Seconds()*1e3/n, "ms-fork")
	b.ReportMetric(run.Seconds()*1e3/n, "ms-run")
	b.ReportMetric(destroy.Seconds()*1e3/n, "ms-destroy")
}
