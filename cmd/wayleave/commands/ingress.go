//go:build linux

package commands

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wayleave.dev/explain"
	"wayleave.dev/explain/objects"
	"wayleave.dev/ingress"
	"wayleave.dev/internal/cli"
	"wayleave.dev/model"
)

func ingressCommand() *cobra.Command {
	return cli.Group("ingress", "HTTP routing by Ingress", ingressCheckCommand())
}

// ingressResult is the answer of ingress check.
type ingressResult struct {
	CarriesOver bool     `json:"carriesOver"`
	Report      []string `json:"report"`
}

// ingressQuestion are the flags of ingress check.
type ingressQuestion struct {
	files               []string
	requests            string
	adopt, oneNamespace bool
	headers             []string
}

func ingressCheckCommand() *cobra.Command {
	var q ingressQuestion
	var out cli.Output
	at := cluster()
	c := &cobra.Command{
		Use:   "check",
		Short: "Check which Ingresses carry over from ingress-nginx, and which policies would block the proxies",
		Long: "Nothing is changed. With -f the objects are those of YAML files, as of\n" +
			"  kubectl get ingress,ingressclass,svc,endpointslice,pod,netpol,node,ns -A -o yaml\n" +
			"otherwise those of the cluster.\n" +
			"With --requests it plays a list of requests against the routing as ingress-nginx makes it and as\n" +
			"Wayleave does, and prints each difference. A line is METHOD URL, and fields with tabs before them.\n" +
			"Exits with 0 when all carries over, 1 when something does not, 2 when that cannot be said.",
		Example: "  wayleave ingress check\n" +
			"  kubectl -n kube-system exec ds/wayleave -c agent -- /wayleave ingress check",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, carries, err := q.answer(cmd, at)
			if err != nil {
				return cli.NoAnswer(err)
			}
			if err := out.Print(cmd.OutOrStdout(), text, ingressResult{carries, cli.Lines(text)}); err != nil {
				return cli.NoAnswer(err)
			}
			return cli.Verdict(carries)
		},
	}
	c.Flags().StringArrayVarP(&q.files, "filename", "f", nil,
		"a file of Ingresses and what they name, - for stdin; may be repeated")
	c.Flags().StringVar(&q.requests, "requests", "",
		"a file of requests to compare with ingress-nginx, - for stdin")
	c.Flags().BoolVar(&q.adopt, "adopt-nginx", true, "as with the setting ingress.adoptNginx")
	c.Flags().BoolVar(&q.oneNamespace, "hosts-of-one-namespace", false,
		"as with the setting ingress.hostsOfOneNamespace")
	c.Flags().StringSliceVar(&q.headers, "allowed-response-headers", nil,
		"as with the setting ingress.globalAllowedResponseHeaders")
	out.Flag(c)
	at.Flags(c, "", "report only Ingresses of this namespace; default: all")
	c.MarkFlagsMutuallyExclusive("namespace", "requests")
	return c
}

func (q ingressQuestion) answer(cmd *cobra.Command, at cli.Cluster) (text string, carries bool, err error) {
	store, err := model.NewStore()
	if err != nil {
		return "", false, err
	}
	defer store.Close()
	check := explain.IngressCheck{Settings: ingress.Settings{AdoptNginx: q.adopt, Default: true,
		HostsOfOneNamespace: q.oneNamespace, ResponseHeaders: q.headers}, Namespace: at.Namespace, Now: time.Now()}
	if len(q.files) > 0 {
		err = objects.Read(store, cmd.InOrStdin(), nil, q.files...) // Ingresses keep their problems
	} else {
		err = objects.ListIngress(cmd.Context(), at.Access, store, check.Settings)
	}
	if err != nil {
		return "", false, err
	}
	check.Snapshot = store.Snapshot()
	if len(q.files) > 0 {
		none := func(k model.Kind) bool { return check.Snapshot.Count(k) == 0 }
		check.NoSecrets, check.NoServices = none(model.SecretKind), none(model.ServiceKind)
		check.NoConfigMaps = none(model.ConfigMapKind) && namesConfigMaps(check.Snapshot)
	}
	if q.requests != "" {
		return play(cmd, check, q.requests)
	}
	text, carries = check.Text()
	return text, carries, nil
}

// namesConfigMaps reports whether an Ingress names a ConfigMap.
func namesConfigMaps(snap model.Snapshot) bool {
	for i := range snap.Ingresses() {
		if len(ingress.ConfigMapsOf(i)) > 0 {
			return true
		}
	}
	return false
}

// play compares how requests of a file are served.
func play(cmd *cobra.Command, check explain.IngressCheck, name string) (text string, same bool, err error) {
	var b strings.Builder
	err = withFile(cmd, name, func(in io.Reader) error {
		differ, err := check.Play(in, &b)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		same = !differ
		return nil
	})
	return b.String(), same, err
}
