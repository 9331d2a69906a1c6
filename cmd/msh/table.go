package main

import (
	"encoding/json"
	"io"
	"text/tabwriter"
)

// tabulate writes rows below a heading, in columns.
func tabulate(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			if i > 0 {
				io.WriteString(t, "\t")
			}
			io.WriteString(t, cell)
		}
		io.WriteString(t, "\n")
	}
	return t.Flush()
}

// writeJSON writes a value for people and programs alike.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
