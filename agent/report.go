package agent

import "wayleave.dev/agent/report"

// Report is what `wayleave status` shows, and the JSON behind it.
type Report = report.Report
