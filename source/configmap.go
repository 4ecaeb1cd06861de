package source

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"wayleave.dev/model"
)

// ConfigMap keeps the data of a ConfigMap within the bounds of the model; of a larger one nothing is kept. Problems are
// reported for the Ingress that names the ConfigMap.
func ConfigMap(in *corev1.ConfigMap) (*model.ConfigMap, []model.Problem) {
	out := &model.ConfigMap{Name: nameOf(&in.ObjectMeta)}
	if n := len(in.Data); n > model.MaxFields {
		out.Wrong = fmt.Sprintf("has %d keys; allowed: %d", n, model.MaxFields)
		return out, nil
	}
	for k, v := range in.Data {
		if len(v) > model.MaxFieldValue {
			out.Data, out.Wrong = nil, fmt.Sprintf("data[%s] has %d bytes; allowed: %d", k, len(v), model.MaxFieldValue)
			return out, nil
		}
		set(&out.Data, strings.Clone(k), v)
	}
	return out, nil
}
