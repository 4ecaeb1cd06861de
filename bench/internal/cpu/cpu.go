// Package cpu has benchmarks run on one CPU, and measures how long that has worked.
package cpu

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Pinned is the CPU that does all work of a benchmark: both ends, and the path.
const Pinned = 1

// Busy returns the seconds that the CPU Pinned has worked, from /proc/stat.
func Busy() (float64, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		rest, ok := strings.CutPrefix(line, fmt.Sprintf("cpu%d ", Pinned))
		if !ok {
			continue
		}
		var user, nice, system, idle, iowait, irq, softirq float64
		if _, err := fmt.Sscanf(rest, "%g %g %g %g %g %g %g", &user, &nice, &system, &idle, &iowait, &irq,
			&softirq); err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		return (user + nice + system + irq + softirq) / 100, nil
	}
	return 0, errors.New("/proc/stat: no such CPU")
}

// Pin moves all threads of this process to the CPUs. Threads and children inherit it.
func Pin(cpus ...int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		var id int
		if _, e := fmt.Sscan(task.Name(), &id); e == nil {
			err = errors.Join(err, unix.SchedSetaffinity(id, &set))
		}
	}
	return err
}

// Per measures work by what it returns, and returns how much was done per second of the CPU Pinned.
func Per(name string, do func() (float64, error)) (float64, error) {
	before, err := Busy()
	if err != nil {
		return 0, err
	}
	n, err := do()
	after, err2 := Busy()
	if err := errors.Join(err, err2); err != nil || n == 0 || after <= before {
		return 0, fmt.Errorf("%s: %v in %v of CPU: %w", name, n, after-before, err)
	}
	return n / (after - before), nil
}
