package podnetwork

import (
	"fmt"
	"os"
	"strings"

	"wayleave.dev/agent"
	"wayleave.dev/model"
	kubesource "wayleave.dev/source/kubernetes"
)

// checkFolders refuses folders of CNI that are not mounted, and reports a container runtime that looks in others: it
// would never call the plugin, and the node would stay NotReady.
func checkFolders(n *agent.Node, runtime kubesource.CNI, unknown error) error {
	for setting, dir := range map[string]string{"podnetwork.cniConfDir": n.CNIConf, "podnetwork.cniBinDir": n.CNIBin} {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("%s: %q is not mounted into the agent: %w; apply a manifest that mounts it, see "+
				"docs/install/README.md", setting, dir, err)
		}
	}
	const what = "container runtime"
	err := unknown
	if err == nil && !runtime.Reads(n.CNIConf, n.CNIBin) {
		err = fmt.Errorf("%s has CNI configurations in %s and plugins in %s, but Wayleave writes to %s and %s: set "+
			"podnetwork.cniConfDir and podnetwork.cniBinDir, and apply a manifest that mounts them "+
			"(docs/install/README.md)", runtime.From, runtime.ConfDir, strings.Join(runtime.BinDirs, ", "), n.CNIConf,
			n.CNIBin)
	}
	n.SetCondition(what, err)
	var problems []model.Problem
	if err != nil {
		problems = []model.Problem{n.Problem("", err.Error())}
	}
	n.Problems.Set("podnetwork", what, problems)
	return nil
}
