package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func (a *app) logsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "logs MACHINE",
		Short: "print what a machine's init and its spawned programs wrote",
		Long:  "Prints what the machine's init and the programs spawned in it wrote, the output of each below\nits name where there are several. A spawn with log=… wrote to the file named there.",
		Args:  takes(1, 1, "MACHINE or LAB/MACHINE"),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			m, err := h.Find(args[0])
			if err != nil {
				return err
			}
			defer m.Close()
			files, err := logs(m)
			if err != nil {
				return err
			}
			for i, file := range files {
				if len(files) > 1 {
					if i > 0 {
						fmt.Fprintln(a.stdout)
					}
					fmt.Fprintf(a.stdout, "==> %s <==\n", filepath.Base(file))
				}
				if err := a.copyFile(file); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) copyFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(a.stdout, f)
	return err
}
