// A process of Nextflow for each slide: nextflow run examples/nextflow --slides 'slides/*.svs' --out results
// The container is that of containers/Dockerfile; docs/clusters.md says more.

process NUCPIPE {
    tag "${slide.name}"
    container 'nucpipe'
    cpus 8
    memory '8 GB'
    publishDir params.out, mode: 'copy'

    input:
    path slide

    output:
    path 'results/*', type: 'dir'

    script:
    """
    nucpipe run '${slide}' --out results --workers ${task.cpus}
    """
}

workflow {
    NUCPIPE(Channel.fromPath(params.slides))
}
