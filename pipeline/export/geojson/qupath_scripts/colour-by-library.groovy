/*
 * nucpipe: colours the nuclei of the open image by the labels of @LIBRARY@.
 *
 * In QuPath: Automate > Script editor, open this file, Run; for all images of a project, Run > Run for project.
 * The labels are read from this folder, by the nuclei's ids; other objects keep their classes. For QuPath 0.4 and later.
 */
import com.google.gson.stream.JsonReader
import groovy.json.JsonSlurper
import java.util.zip.GZIPInputStream
import qupath.lib.common.ColorTools
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP

FOLDER = @FOLDER@  // where this file lies; change it if the folder was moved
LIBRARY = '@LIBRARY@'

/* The slide of this folder that an image shows: the one whose name the image's name begins with. */
def slideOf(about, String image) {
    return about.slides.keySet()
        .findAll { image == it || image.startsWith(it + '.') || image.startsWith(it + ' ') }
        .max { it.length() }
}

/* Goes through a JSON object member by member, holding one at a time. */
def eachMember(JsonReader reader, Closure member) {
    reader.beginObject()
    while (reader.hasNext()) {
        if (!member(reader.nextName()))
            reader.skipValue()
    }
    reader.endObject()
}

/* Calls action with the id and the label of one nucleus of a file after the other; null where it has no label. */
def eachLabel(File file, Closure action) {
    def stream = new GZIPInputStream(new BufferedInputStream(new FileInputStream(file)))
    new JsonReader(new InputStreamReader(stream, 'UTF-8')).withCloseable { reader ->
        eachMember(reader) { name ->
            if (name != 'features')
                return false
            reader.beginArray()
            while (reader.hasNext()) {
                String id = null, label = null
                eachMember(reader) { part ->
                    if (part == 'id')
                        return (id = reader.nextString()) != null
                    if (part != 'properties')
                        return false
                    eachMember(reader) { property ->
                        if (property != 'metadata')
                            return false
                        eachMember(reader) { key -> key == LIBRARY && (label = reader.nextString()) != null }
                        return true
                    }
                    return true
                }
                action(id, label)
            }
            reader.endArray()
            return true
        }
    }
}

def start = new File(FOLDER, 'classes.json')
if (!start.isFile()) {
    println "nucpipe: ${start} is not there; set FOLDER in the first lines of this script to where it lies"
    return
}
def about = new JsonSlurper().parse(start, 'UTF-8')
def open = QP.getProjectEntry()
def imageData = QP.getCurrentImageData()
def image = open != null ? open.getImageName() : imageData.getServer().getMetadata().getName()
def slide = slideOf(about, image)
if (slide == null) {
    println "nucpipe: nothing was recoloured: no nuclei for ${image} in ${FOLDER}"
    return
}
def classes = about.libraries[LIBRARY].collectEntries { label, rgb ->
    def known = PathClass.fromString(label, null)
    known.setColor(ColorTools.packRGB(rgb[0], rgb[1], rgb[2]))
    [label, known]
}

def hierarchy = imageData.getHierarchy()
def byId = hierarchy.getDetectionObjects().collectEntries { [it.getID().toString(), it] }
def nuclei = []
eachLabel(new File(FOLDER, about.slides[slide].file)) { id, label ->
    def nucleus = byId[id]
    if (nucleus != null) {
        // Where labels were decided by a threshold a nucleus can have several: the first one colours it.
        nucleus.setPathClass(label == null ? null : classes[label.split('; ')[0]])
        nuclei << nucleus
    }
}
if (!nuclei) {
    println "nucpipe: nothing was recoloured: ${image} shows none of the ${about.slides[slide].nuclei} nuclei in " +
        "${FOLDER} (of ${byId.size()} detections); run import-nuclei.groovy first"
    return
}
hierarchy.fireObjectClassificationsChangedEvent(hierarchy, nuclei)
println "nucpipe: ${nuclei.size()} nuclei in the labels of ${LIBRARY}"
nuclei.countBy { it.getPathClass() }.sort { -it.value }.each { known, count -> println "  ${known ?: 'no label'}: ${count}" }
