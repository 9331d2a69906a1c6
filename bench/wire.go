package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed wire.star
var wireSource []byte

//go:embed wire.sh
var wireByHand []byte

// ourWire measures the throughput between two machines on a vnet: Gbit/s.
func (b *bench) ourWire() (func() (float64, error), error) {
	if _, err := lookPath("iperf3"); err != nil {
		return nil, err
	}
	s, err := b.startOrders("wire", wireSource)
	if err != nil {
		return nil, err
	}
	if line := s.line(); line != "ready" {
		return nil, s.failure("ready", line)
	}
	return func() (float64, error) { return s.cycle("go") }, nil
}

// wireHandMade measures it between two namespaces on a bridge, by hand.
func (b *bench) wireHandMade() (func() (float64, error), error) {
	if _, err := lookPath("iperf3"); err != nil {
		return nil, err
	}
	file := filepath.Join(b.dir, "wire.sh")
	if err := os.WriteFile(file, wireByHand, 0o644); err != nil {
		return nil, err
	}
	return func() (float64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		out, err := exec.CommandContext(ctx, "unshare", "--net", "--mount", "sh", file).Output()
		if err != nil {
			return 0, err
		}
		var said struct {
			End struct {
				Received struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal(out, &said); err != nil {
			return 0, fmt.Errorf("iperf3 said %.200q: %w", out, err)
		}
		return said.End.Received.Rate / 1e9, nil
	}, nil
}
