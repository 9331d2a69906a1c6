package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"msh/builtins"
	"msh/interp"
)

func (a *app) docCommand() *cobra.Command {
	var markdown bool
	c := &cobra.Command{
		Use:     "doc [NAME]",
		Short:   "explain a word of the language; without a name, list them",
		Example: "  msh doc cpu\n  msh doc Machine\n  msh doc Machine.run",
		Args:    takes(0, 1, "a word, or none for the list"),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.host()
			if err != nil {
				return err
			}
			s, err := builtins.New(builtins.Options{Host: h, Lab: "doc", Dry: true, Stdout: a.stdout})
			if err != nil {
				return err
			}
			in := interp.New(interp.Options{Words: s.Words(), Values: s.Values()})
			switch {
			case markdown && len(args) > 0:
				return usage(c, "got --markdown and %q, want one of them", args[0])
			case markdown:
				return reference(a.stdout, in.Words())
			}
			text, err := in.Doc(strings.Join(args, ""))
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.stdout, strings.TrimPrefix(text, "\n"))
			return err
		},
	}
	c.Flags().BoolVar(&markdown, "markdown", false, "the whole reference, as Markdown")
	return c
}

// reference writes the page of every word as one document: first what can be called by its name, then by module or type.
func reference(w io.Writer, words []*interp.Word) error {
	var b strings.Builder
	b.WriteString("# The words of msh\n\nWritten by `msh doc --markdown`; `msh doc NAME` prints one of them.\n")
	owner := ""
	for _, word := range grouped(words) {
		if o, _, dotted := strings.Cut(word.Name, "."); dotted && o != owner {
			owner = o
			fmt.Fprintf(&b, "\n## %s\n", o)
		} else if owner == "" {
			owner = " "
			b.WriteString("\n## Functions\n")
		}
		fmt.Fprintf(&b, "\n### %s\n\n    %s\n\n%s\n", word.Name, word.Signature(), strings.TrimSpace(word.Doc))
		for i, p := range word.Params {
			if i == 0 {
				b.WriteString("\n| parameter | type | default | |\n|---|---|---|---|\n")
			}
			stars := ""
			switch {
			case p.Rest:
				stars = `\*`
			case p.Kwargs:
				stars = `\*\*`
			}
			standard := ""
			if p.Default != "" {
				standard = "`" + p.Default + "`"
			}
			fmt.Fprintf(&b, "| %s`%s` | %s | %s | %s |\n", stars, p.Name, cell(p.Type), cell(standard), cell(p.Doc))
		}
		if word.Returns != "" {
			fmt.Fprintf(&b, "\nReturns: %s\n", strings.TrimSpace(word.Returns))
		}
		if word.Errors != "" {
			fmt.Fprintf(&b, "\nErrors: %s\n", strings.TrimSpace(word.Errors))
		}
		fmt.Fprintf(&b, "\n```python\n%s\n```\n", strings.TrimSpace(word.Example))
		if word.Output != "" {
			fmt.Fprintf(&b, "\nprints\n\n```\n%s\n```\n", strings.TrimRight(word.Output, "\n"))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// grouped puts the words without a dot first; the rest keep their order, which is by name.
func grouped(words []*interp.Word) []*interp.Word {
	var plain, dotted []*interp.Word
	for _, w := range words {
		if strings.Contains(w.Name, ".") {
			dotted = append(dotted, w)
		} else {
			plain = append(plain, w)
		}
	}
	return append(plain, dotted...)
}

// cell writes a text into a table.
func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
}
