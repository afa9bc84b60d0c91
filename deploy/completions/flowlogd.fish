# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_flowlogd_global_optspecs
    string join \n node= cluster= kubeconfig= config= set= log-level= h/help V/version
end

function __fish_flowlogd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_flowlogd_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_flowlogd_using_subcommand
    set -l cmd (__fish_flowlogd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c flowlogd -n "__fish_flowlogd_needs_command" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_needs_command" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_needs_command" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_needs_command" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_needs_command" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_needs_command" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_needs_command" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -s V -l version -d 'Print version'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "run" -d 'Observe this node and write its flow log, until SIGTERM'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "replay" -d 'Turn a recording into flow-log lines on stdout'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "record" -d 'Write what this node shows, and the cluster\'s objects, as a recording that `replay` understands'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "observe" -d 'Follow flows live, or look through flow logs: filtered, as a table, as lines, or summed up'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "check" -d 'Tell what this node offers, which source would be used, and what to do about what is missing'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "config" -d 'Show every configuration value and which layer set it'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "policy" -d 'What the cluster\'s policies say of flows: of seen ones after a change, of one in detail, of none'
complete -c flowlogd -n "__fish_flowlogd_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l source -d 'Where connections are observed (the field flowLogsSource)' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l output -d 'Where lines go' -r -f -a "file\t'`flows.log` in flowLogsFileDirectory'
stdout\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l flush -d 'What closes a window: the interval flowLogsFlushInterval in the recording\'s time, or its flush lines alone' -r -f -a "interval\t''
explicit\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l dns-log -d 'Write the lines of the DNS log to this file, which is replaced; without it `dns` lines only name destinations' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand replay" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l output -d 'File to write, or - for stdout' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l duration -d 'Stop after this time, such as 30s or 5m; without it, on SIGINT or SIGTERM' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l source -d 'Where connections are observed (the field flowLogsSource)' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand record" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -s n -l last -d 'The last N lines that match' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l since -d 'Only lines of windows that ended since then: a duration (5m) or a time (2026-01-01T00:00:00Z)' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l top -d 'Sum up instead of listing' -r -f -a "talkers\t'Pairs by bytes'
denied\t'Denied flows by packets'
ports\t'Protocols and ports by bytes'
policies\t'Policies that decided, by flows'
mismatch\t'Flows of which policy says otherwise than the kernel did'"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l rows -d 'Rows of a summary' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -s o -l output -d 'How to show [default: table on a terminal, json elsewhere]' -r -f -a "table\t''
json\t'The lines as they are, one object each'"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l width -d 'Columns of the table [default: the terminal\'s]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l color -r -f -a "auto\t'On a terminal, unless NO_COLOR is set'
always\t''
never\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l socket -d 'The agent\'s live socket [default: the field flowLogsLiveSocketPath of file, environment or --set; the cluster is not asked]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l filter -d 'A filter, such as \'namespace=shop not (port=53 or action=allow)\'; repeatable, all are needed' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l namespace -d 'Namespace of a pod, network set or host endpoint [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-namespace -d 'As --namespace' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-namespace -d 'As --namespace' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-namespace -d 'As --namespace' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-namespace -d 'As --namespace' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-namespace -d 'As --namespace' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l pod -d 'Pod: its name, or the name of its line (client-*); NAMESPACE/NAME too [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-pod -d 'As --pod' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-pod -d 'As --pod' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-pod -d 'As --pod' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-pod -d 'As --pod' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-pod -d 'As --pod' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l name -d 'Name of any end, as pod: also host endpoints, network sets, pub and pvt [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-name -d 'As --name' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-name -d 'As --name' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-name -d 'As --name' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-name -d 'As --name' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-name -d 'As --name' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l label -d 'Label: KEY, or KEY=VALUE [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-label -d 'As --label' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-label -d 'As --label' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-label -d 'As --label' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-label -d 'As --label' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-label -d 'As --label' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l type -d 'Type of an end: wep, hep, ns or net [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-type -d 'As --type' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-type -d 'As --type' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-type -d 'As --type' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-type -d 'As --type' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-type -d 'As --type' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l ip -d 'Address or CIDR [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-ip -d 'As --ip' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-ip -d 'As --ip' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-ip -d 'As --ip' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-ip -d 'As --ip' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-ip -d 'As --ip' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l port -d 'Port or range (8000-8999); without src. or dst. also the service\'s port [--from-, --to-, --not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l from-port -d 'As --port' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l to-port -d 'As --port' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-port -d 'As --port' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-from-port -d 'As --port' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-to-port -d 'As --port' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l proto -d 'Protocol: tcp, udp, icmp ..., or its number [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-proto -d 'As --proto' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l service -d 'Service: NAME, NAMESPACE/NAME, and perhaps :PORT [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-service -d 'As --service' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l action -d 'allow or deny [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-action -d 'As --action' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l reporter -d 'src or dst [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-reporter -d 'As --reporter' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l policy -d 'Policy that decided, or that is pending: NAME or NAMESPACE/NAME [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-policy -d 'As --policy' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l domain -d 'Domain name that led to the destination [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-domain -d 'As --domain' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l process -d 'Name of the local process [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-process -d 'As --process' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l reason -d 'Why the kernel dropped, such as NETFILTER_DROP [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-reason -d 'As --reason' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l mismatch -d 'true or false: what happened contradicts the policies [--not-]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l not-mismatch -d 'As --mismatch' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -s f -l follow -d 'Go on with what comes; what there is without --last and --since when the agent is asked'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l lines -d 'From the agent: the lines of each flush, instead of connections as they happen'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -l utc -d 'Show times in UTC instead of this host\'s zone'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand observe" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -l json -d 'JSON instead of a table'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand check" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -l json -d 'JSON instead of a table'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand config" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -f -a "preview" -d 'Tell which flows a change of policies would deny or allow'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -f -a "explain" -d 'Tell which tiers, policies and rules one flow meets, and why each matches or not'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -f -a "unused" -d 'Tell which policies and rules no flow of these logs used'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and not __fish_seen_subcommand_from preview explain unused help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l with -d 'Manifests that would be applied over the cluster (policies, namespaces, network sets, anything)' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l without -d 'Policies that would be gone, named as in the lines: knp:shop/allow-web, gnp:deny-all, tier:security' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l enforce-staged -d 'Staged policies count as enforced after the change'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l strict -d 'Exit code 1 also where a flow may become denied'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l all -d 'The flows that stay as they are too'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -l json -d 'One JSON object instead of a table'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from preview" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l src -d 'The source: an address, or NAMESPACE/POD' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l dst -d 'The destination, after the service was resolved: an address, or NAMESPACE/POD' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l proto -d 'tcp, udp, sctp, icmp, icmp6 or a number' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l sport -d 'The source\'s port [default: any]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l dport -d 'The destination\'s port' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l icmp -d 'ICMP type, or type/code' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -l json -d 'One JSON object instead of text'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from explain" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l node -d 'Name of this node in the cluster [default: the host\'s name]' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l cluster -d 'Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l kubeconfig -d 'Where the API server is [default: KUBECONFIG, or the service account of the pod]' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l config -d 'Configuration file: a YAML map of fields, or a FlowLogConfiguration object' -r -F
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l set -d 'Set a configuration field, above every other layer; repeatable' -r
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l log-level -d 'error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]' -r -f -a "error\t''
warn\t''
info\t''
debug\t''
trace\t''
off\t''"
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -l json -d 'One JSON object instead of a table'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from unused" -s h -l help -d 'Print help'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "preview" -d 'Tell which flows a change of policies would deny or allow'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "explain" -d 'Tell which tiers, policies and rules one flow meets, and why each matches or not'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "unused" -d 'Tell which policies and rules no flow of these logs used'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand policy; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "run" -d 'Observe this node and write its flow log, until SIGTERM'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "replay" -d 'Turn a recording into flow-log lines on stdout'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "record" -d 'Write what this node shows, and the cluster\'s objects, as a recording that `replay` understands'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "observe" -d 'Follow flows live, or look through flow logs: filtered, as a table, as lines, or summed up'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "check" -d 'Tell what this node offers, which source would be used, and what to do about what is missing'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "config" -d 'Show every configuration value and which layer set it'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "policy" -d 'What the cluster\'s policies say of flows: of seen ones after a change, of one in detail, of none'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and not __fish_seen_subcommand_from run replay record observe check config policy help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "preview" -d 'Tell which flows a change of policies would deny or allow'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "explain" -d 'Tell which tiers, policies and rules one flow meets, and why each matches or not'
complete -c flowlogd -n "__fish_flowlogd_using_subcommand help; and __fish_seen_subcommand_from policy" -f -a "unused" -d 'Tell which policies and rules no flow of these logs used'
