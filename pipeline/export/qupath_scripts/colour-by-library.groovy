/*
 * nucpipe: colours the nuclei of the open image by the labels of @LIBRARY@.
 *
 * In QuPath: Automate > Script editor, open this file, Run; for all images of a project, Run > Run for project.
 * The nuclei come from import-nuclei.groovy; each holds its labels of all libraries. For QuPath 0.5 and later.
 */
import groovy.json.JsonSlurper
import qupath.lib.common.ColorTools
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP

FOLDER = @FOLDER@  // where this file lies; change it if the folder was moved
LIBRARY = '@LIBRARY@'

def colours = new JsonSlurper().parse(new File(FOLDER, 'classes.json'), 'UTF-8').libraries[LIBRARY]
def classes = colours.collectEntries { label, rgb ->
    def known = PathClass.fromString(label, null)
    known.setColor(ColorTools.packRGB(rgb[0], rgb[1], rgb[2]))
    [label, known]
}

def hierarchy = QP.getCurrentImageData().getHierarchy()
// What has no label of any library is no nucleus of nucpipe's.
def libraries = @LIBRARIES@
def nuclei = hierarchy.getDetectionObjects().findAll { nucleus ->
    libraries.any { nucleus.getMetadata().containsKey(it) }
}
nuclei.each { nucleus ->
    // Where labels were decided by a threshold a nucleus can have several: the first one colours it.
    def label = nucleus.getMetadata()[LIBRARY]?.split('; ')?.first()
    nucleus.setPathClass(label == null ? null : classes[label])
}
hierarchy.fireObjectClassificationsChangedEvent(hierarchy, nuclei)
println "nucpipe: ${nuclei.size()} nuclei in the labels of ${LIBRARY}"
nuclei.countBy { it.getPathClass() }.sort { -it.value }.each { known, count -> println "  ${known ?: 'no label'}: ${count}" }
