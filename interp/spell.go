package interp

import "strings"

// didYouMean returns " (did you mean x?)" for the candidate nearest to name, or "" where none is near.
func didYouMean(name string, candidates []string) string {
	best, bestDistance := "", (len(name)+1)/2 // half the letters may be wrong, no more
	for _, c := range candidates {
		if d := distance(fold(name), fold(c)); d < bestDistance || d == bestDistance && best != "" && c < best {
			best, bestDistance = c, d
		}
	}
	if best == "" || best == name {
		return ""
	}
	return " (did you mean " + best + "?)"
}

// fold drops what people get wrong without noticing.
func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "_", "") }

// distance is the edit distance of a and b in bytes, with a swap of two neighbours counted as one edit.
func distance(a, b string) int {
	var before []int // the row two above
	above := make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above = above, row
	}
	return above[len(b)]
}
