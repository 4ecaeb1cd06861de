package observability

// schemaVersion is that of Grafana 10; later versions migrate it.
const schemaVersion = 39

// The grid of Grafana has 24 columns: two panels in a row, or six numbers.
const (
	columns    = 24
	width      = 12
	height     = 8
	statWidth  = 4
	statHeight = 4
)

type object = map[string]any

// source is the variable that the user chooses a Prometheus with.
func source() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// model is the dashboard in Grafana's JSON model.
func (d Dashboard) model() object {
	panels := make([]object, 0, len(d.Panels))
	x, y, row := 0, 0, 0
	for i, p := range d.Panels {
		w, h := width, height
		if p.Stat {
			w, h = statWidth, statHeight
		}
		if x+w > columns || h != row && x > 0 {
			x, y = 0, y+row
		}
		panels = append(panels, p.model(i+1, object{"x": x, "y": y, "w": w, "h": h}))
		x, row = x+w, h
	}
	return object{"uid": "wayleave-" + d.Name, "title": d.Title, "tags": []string{"wayleave"}, "timezone": "browser",
		"schemaVersion": schemaVersion, "version": 1, "editable": true, "refresh": "30s",
		"time": object{"from": "now-1h", "to": "now"}, "templating": object{"list": d.variables()}, "panels": panels,
		"annotations": object{"list": []object{}}}
}

func (d Dashboard) variables() []object {
	list := []object{{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}}
	if d.PerNode {
		query := `label_values(wayleave_build_info{job="wayleave"}, instance)`
		list = append(list, object{"name": "instance", "label": "Node", "type": "query", "datasource": source(),
			"query": object{"query": query, "refId": "nodes"}, "definition": query, "refresh": 2, "multi": true,
			"includeAll": true, "current": object{"text": "All", "value": "$__all"}, "sort": 1})
	}
	return list
}

func (p Panel) model(id int, at object) object {
	var targets []object
	for i, q := range p.Queries {
		targets = append(targets, object{"refId": string(rune('A' + i)), "datasource": source(), "expr": q.Expr,
			"legendFormat": q.Legend})
	}
	out := object{"id": id, "title": p.Title, "type": "timeseries", "datasource": source(), "gridPos": at,
		"targets":     targets,
		"fieldConfig": object{"defaults": object{"unit": p.Unit, "min": 0}, "overrides": []object{}},
		"options": object{"legend": object{"displayMode": "list", "placement": "bottom", "showLegend": true},
			"tooltip": object{"mode": "multi", "sort": "desc"}}}
	if p.Stat {
		out["type"] = "stat"
		out["options"] = object{"colorMode": "value", "graphMode": "area",
			"reduceOptions": object{"calcs": []string{"lastNotNull"}}}
	}
	return out
}
