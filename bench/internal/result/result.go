// Package result writes the results of a benchmark to a page of docs: tables in Markdown and plots in SVG, without a
// library, so that they are the same everywhere.
package result

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Median returns the median of values, zero without values. For an even number it is the higher of the two middle
// values: for costs the less flattering one.
func Median[T cmp.Ordered](values []T) (m T) {
	if len(values) == 0 {
		return m
	}
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

// Percentile returns a percentile by nearest rank, zero without values.
func Percentile[T cmp.Ordered](values []T, p float64) (v T) {
	if len(values) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(values))
	i := int(math.Ceil(p/100*float64(len(sorted)))) - 1
	return sorted[max(i, 0)]
}

// Page is a document under construction.
type Page struct {
	dir, name string
	text      strings.Builder
}

// New starts docs/NAME.md in a folder.
func New(dir, name, title string) *Page {
	p := &Page{dir: dir, name: name}
	p.Text("# " + title)
	return p
}

// Section starts a part of a page, whose heading the caller writes.
func Section(heading string) *Page {
	p := &Page{}
	p.Text("%s", heading)
	return p
}

// String returns the text so far, with one newline at the end.
func (p *Page) String() string { return strings.TrimRight(p.text.String(), "\n") + "\n" }

// Text adds a paragraph.
func (p *Page) Text(format string, args ...any) {
	fmt.Fprintf(&p.text, format+"\n\n", args...)
}

// Table adds a table; the first row is the head.
func (p *Page) Table(rows [][]string) {
	for i, r := range rows {
		fmt.Fprintf(&p.text, "| %s |\n", strings.Join(r, " | "))
		if i == 0 {
			fmt.Fprintln(&p.text, strings.Repeat("|---", len(r))+"|")
		}
	}
	fmt.Fprintln(&p.text)
}

// Write writes the page.
func (p *Page) Write() error {
	return os.WriteFile(filepath.Join(p.dir, p.name+".md"), []byte(p.String()), 0o644)
}

// Machine describes the machine of the measurement.
func Machine() string {
	kernel, _ := exec.Command("uname", "-r").Output()
	return fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}

// Series are the values of one program.
type Series struct {
	Name string
	Y    []float64
}

// Bars adds groups of bars, one per label, with a logarithmic axis if the values differ by more than a factor of 30.
func (p *Page) Bars(name, title, unit string, labels []string, series []Series) error {
	const width, height, left, bottom, top = 760, 320, 64, 40, 48
	colours := []string{"#1f6feb", "#8c959f", "#d29922", "#2da44e", "#8250df"}
	lo, hi := math.Inf(1), 0.0
	for _, s := range series {
		for _, y := range s.Y {
			if y > 0 {
				lo, hi = min(lo, y), max(hi, y)
			}
		}
	}
	if hi == 0 {
		return fmt.Errorf("plot %s: nothing to show", name)
	}
	log := hi/lo > 30
	scale := func(y float64) float64 {
		switch {
		case y <= 0:
			return 0
		case log:
			base := math.Floor(math.Log10(lo)) - 0.3
			return (math.Log10(y) - base) / (math.Log10(hi) - base)
		}
		return y / hi
	}
	var b strings.Builder
	fmt.Fprintf(&b,
		`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/><text x="%d" y="18" font-size="14">%s</text>`+"\n",
		width, height, left, title)
	plot := float64(height - bottom - top)
	for _, y := range ticks(lo, hi, log) {
		at := float64(height-bottom) - scale(y)*plot
		fmt.Fprintf(&b,
			`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+
				`<text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, width-10, at, at, left-6, at+4, Number(y))
	}
	group := float64(width-left-20) / float64(len(labels))
	bar := group * 0.8 / float64(len(series))
	for i, l := range labels {
		x := float64(left) + group*float64(i)
		for j, s := range series {
			h := scale(s.Y[i]) * plot
			at := x + group*0.1 + bar*float64(j)
			if s.Y[i] <= 0 {
				continue
			}
			fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/><text x="%.1f" y="%.1f" `+
				`text-anchor="middle" font-size="10">%s</text>`+"\n",
				at, float64(height-bottom)-h, bar*0.94, h, colours[j%len(colours)], at+bar/2,
				float64(height-bottom)-h-3, Number(s.Y[i]))
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x+group/2, height-bottom+18, l)
	}
	step := min(190, (width-left)/len(series))
	for j, s := range series {
		fmt.Fprintf(&b, `<rect x="%d" y="26" width="10" height="10" fill="%s"/><text x="%d" y="35">%s</text>`+"\n",
			left+j*step, colours[j%len(colours)], left+j*step+14, s.Name)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" font-size="11" fill="#555">%s%s</text></svg>`+"\n", left, height-6, unit,
		map[bool]string{true: ", logarithmic"}[log])
	p.Text("![%s](%s.svg)", title, name)
	return os.WriteFile(filepath.Join(p.dir, name+".svg"), []byte(b.String()), 0o644)
}

func ticks(lo, hi float64, log bool) (out []float64) {
	if log {
		for y := math.Pow(10, math.Floor(math.Log10(lo))); y <= hi; y *= 10 {
			out = append(out, y)
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10(hi)))
	for hi/step < 4 {
		step /= 2
	}
	for y := 0.0; y <= hi; y += step {
		out = append(out, y)
	}
	return out
}

// Number formats with three significant digits.
func Number(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// Docs is the checkout's folder of pages, relative to a benchmark's folder.
const Docs = "../../docs"
