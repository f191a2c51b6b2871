package inside

// Mark stands in front of every answer, to tell it from what else is written
// on a console.
const Mark = "sublet-appliance: "

// The channel's measures. Pieces are large beside the two milliseconds or so
// that a request and its answer take.
const (
	Pieces    = 2
	PieceSize = 4 << 20
)

// MaxLine bounds a line of either side, in bytes.
const MaxLine = 16 << 10

// Op is what a request asks for.
type Op string

// The requests. One job runs at a time.
const (
	// Hello is answered at once.
	Hello Op = "hello"
	// Start begins Job.
	Start Op = "start"
	// Give hands over Size bytes of the job's input, in Piece; a size of 0 is
	// its end. The answer comes when the job has taken them, or is over.
	Give Op = "give"
	// Take asks for output of the job in Piece. The answer says how much it
	// is; 0 means that there is no more. A whole one waits until the piece is
	// full or the output over, another until there is anything.
	Take Op = "take"
	// End waits until the job is over and answers with its Outcome.
	End Op = "end"
	// Off ends the appliance.
	Off Op = "off"
)

// Request is one line to an appliance.
type Request struct {
	ID    int  `json:"id"`
	Op    Op   `json:"op"`
	Job   *Job `json:"job,omitempty"`
	Piece int  `json:"piece,omitempty"`
	Size  int  `json:"size,omitempty"`
	Whole bool `json:"whole,omitempty"`
}

// Answer is one line from an appliance.
type Answer struct {
	ID int `json:"id"`
	// Error says why the request could not be carried out; the job's own
	// failure is in its Outcome.
	Error string `json:"error,omitempty"`
	// Over tells that the job takes no more input, with its answer to Give.
	Over bool `json:"over,omitempty"`
	// Size answers Take.
	Size int `json:"size,omitempty"`
	// Outcome answers End.
	Outcome *Outcome `json:"outcome,omitempty"`
}

// Kind is what a job does.
type Kind string

// The jobs.
const (
	// Unpack puts the archive in the input into the folder Path in the
	// filesystem of Disk; empty is its root.
	Unpack Kind = "unpack"
	// CopyIn does the same with the archive of one file or folder, and places
	// it at Path as cp does; see tree.Root.Receive.
	CopyIn Kind = "copy-in"
	// CopyOut writes an archive of Path in the filesystem of Disk, as Receive
	// takes it. Nothing is written there but the journal that is to be.
	CopyOut Kind = "copy-out"
	// Check looks for damage in the filesystem of Disk, with the program that
	// belongs to its kind, from the rescue system. What that says is the
	// output. A journal is replayed first, as the next boot would.
	Check Kind = "check"
)

// Job is one piece of work in an appliance.
type Job struct {
	Kind Kind `json:"kind"`
	// Disk is the number of the disk, from 0, as the appliance got them.
	Disk int `json:"disk"`
	// Filesystem is "ext4", "xfs" or "btrfs"; empty means to find out.
	Filesystem string `json:"filesystem,omitempty"`
	// Path is a path in that filesystem; see the kinds.
	Path string `json:"path,omitempty"`
	// Repair lets Check mend what it finds.
	Repair bool `json:"repair,omitempty"`
}

// Failure says what kind of failure a job had, for whom a sentence is not
// enough.
type Failure string

// The failures. Empty is none.
const (
	Other   Failure = "other"
	Missing Failure = "missing" // there is no such file in the filesystem
	Full    Failure = "full"    // the filesystem is full
	Unsound Failure = "unsound" // the filesystem cannot be mounted
	Bad     Failure = "bad"     // the input or the request is wrong
)

// Outcome is how a job ended.
type Outcome struct {
	Failure Failure `json:"failure,omitempty"`
	// Error says what went wrong, for people.
	Error string `json:"error,omitempty"`
	// Filesystem is the kind that was found: "ext4".
	Filesystem string `json:"filesystem,omitempty"`
	// Verdict is what a check found.
	Verdict Verdict `json:"verdict,omitempty"`
}

// Verdict is what a check found.
type Verdict string

// The verdicts.
const (
	Clean   Verdict = "clean"
	Mended  Verdict = "mended"  // there was damage, and there is no more
	Damaged Verdict = "damaged" // there is damage
)
