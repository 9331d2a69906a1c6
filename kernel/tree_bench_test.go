package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
)

func BenchmarkTree(b *testing.B) {
	for b.Loop() {
		h, err := NewHost(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		l, err := h.NewLab(fmt.Sprintf("tree-%d", os.Getpid()), false)
		if err != nil {
			b.Fatal(err)
		}
		ctx := b.Context()
		var vs []*VNet
		for range 32 {
			v, err := l.VNet(ctx, l.Host(), &VNetSpec{})
			if err != nil {
				b.Fatal(err)
			}
			vs = append(vs, v)
		}
		t := time.Now()
		for i := range 1024 {
			a, _ := ParseAddress(fmt.Sprintf("10.0.%d.%d/8", i>>8, i&255))
			_ = netip.Addr{}
			if _, err := l.Fork(ctx, l.Host(), &Spec{Resources: []Resource{&Netif{VNet: vs[i/32].Name(), Addresses: []Address{a}}}}); err != nil {
				b.Fatal(err)
			}
			if i&(i+1) == 0 || i == 1023 {
				fmt.Println(i+1, time.Since(t)/time.Duration(i+1))
			}
		}
		t = time.Now()
		if err := l.Close(ctx); err != nil {
			b.Fatal(err)
		}
		fmt.Println("down", time.Since(t))
	}
}
