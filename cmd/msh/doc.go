package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"msh/builtins"
	"msh/interp"
	"msh/stdlib"
)

func (a *app) docCommand() *cobra.Command {
	var markdown bool
	c := &cobra.Command{
		Use:     "doc [NAME]",
		Short:   "explain a word of the language, a type, a module; without a name, list them",
		Example: "  msh doc cpu\n  msh doc Machine\n  msh doc Machine.run\n  msh doc @msh//net.star\n  msh doc iperf",
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
			in := interp.New(interp.Options{Words: s.Words(), Values: s.Values(), Types: builtins.Types(), Named: builtins.Named(), Stdlib: stdlib.FS})
			switch {
			case markdown && len(args) > 0:
				return usage(c, "got --markdown and %q, want one of them", args[0])
			case markdown:
				return reference(a.stdout, in)
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

// reference writes the page of everything as one document: what can be called by its name, the other predeclared values,
// then the predeclared modules and the types, and the standard library.
func reference(w io.Writer, in *interp.Interp) error {
	modules, err := in.Modules()
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("# The words of msh\n\nWritten by `msh doc --markdown`; `msh doc NAME` prints one of them.\n\n## Functions\n")
	types := map[string]interp.Type{}
	members := map[string][]*interp.Word{}
	for _, t := range in.Types() {
		types[t.Name], members[t.Name] = t, nil
	}
	for _, word := range in.Words() {
		if owner, _, dotted := strings.Cut(word.Name, "."); dotted {
			members[owner] = append(members[owner], word)
		} else {
			writeWord(&b, word)
		}
	}
	b.WriteString("\n## Values\n\n| name | type | |\n|---|---|---|\n")
	for _, n := range in.Named() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", n.Name, n.Type, cell(n.Doc))
	}
	for _, owner := range slices.Sorted(maps.Keys(members)) {
		fmt.Fprintf(&b, "\n## %s\n", owner)
		if t, ok := types[owner]; ok {
			fmt.Fprintf(&b, "\n%s\n\n| attribute | |\n|---|---|\n", t.Doc)
			for _, a := range t.Attrs {
				fmt.Fprintf(&b, "| `%s` | %s |\n", a.Name, cell(a.Doc))
			}
		}
		for _, word := range members[owner] {
			writeWord(&b, word)
		}
	}
	for _, m := range modules {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", m.Name, prose(m.Doc))
		for _, f := range m.Funcs {
			fmt.Fprintf(&b, "\n### %s\n\n    %s\n    %s\n\n%s\n", f.Name, m.Load(f), f.Signature, prose(f.Doc))
		}
	}
	_, err = io.WriteString(w, b.String())
	return err
}

func writeWord(b *strings.Builder, word *interp.Word) {
	fmt.Fprintf(b, "\n### %s\n\n    %s\n\n%s\n", word.Name, word.Signature(), strings.TrimSpace(word.Doc))
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
		fmt.Fprintf(b, "| %s`%s` | %s | %s | %s |\n", stars, p.Name, cell(p.Type), cell(standard), cell(p.Doc))
	}
	if word.Returns != "" {
		fmt.Fprintf(b, "\nReturns: %s\n", strings.TrimSpace(word.Returns))
	}
	if word.Errors != "" {
		fmt.Fprintf(b, "\nErrors: %s\n", strings.TrimSpace(word.Errors))
	}
	fmt.Fprintf(b, "\n```python\n%s\n```\n", strings.TrimSpace(word.Example))
	if word.Output != "" {
		fmt.Fprintf(b, "\nprints\n\n```\n%s\n```\n", strings.TrimRight(word.Output, "\n"))
	}
}

// prose is a doc string of the standard library as Markdown: what has a margin is shown as it is, the rest has no markup.
func prose(doc string) string {
	var b strings.Builder
	for line := range strings.Lines(doc) {
		if !strings.HasPrefix(line, "    ") {
			line = strings.ReplaceAll(line, "*", `\*`)
		}
		b.WriteString(line)
	}
	return b.String()
}

// cell writes a text into a table.
func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
}
