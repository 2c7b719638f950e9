/*
 * nucpipe: puts the nuclei of this folder onto the open image, or onto every image of the project.
 *
 * In QuPath: Automate > Script editor, open this file, Run. For all images of a project set ALL_IMAGES to true, or
 * leave it and take Run > Run for project. Nuclei that were imported before are replaced; nothing else is touched.
 * For QuPath 0.4 and later; only 0.6 and later can hold the labels of all libraries in a nucleus.
 */
import com.google.gson.JsonObject
import com.google.gson.stream.JsonReader
import groovy.json.JsonSlurper
import java.util.zip.GZIPInputStream
import qupath.lib.common.ColorTools
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathObject
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP

FOLDER = @FOLDER@  // where this file lies; change it if the folder was moved
ALL_IMAGES = false

/* The slide of this folder that an image shows: the one whose name the image's name begins with. */
def slideOf(String image) {
    return about.slides.keySet()
        .findAll { image == it || image.startsWith(it + '.') || image.startsWith(it + ' ') }
        .max { it.length() }
}

def setColours(String library) {
    about.libraries[library].each { label, rgb ->
        PathClass.fromString(label, null).setColor(ColorTools.packRGB(rgb[0], rgb[1], rgb[2]))
    }
}

/* The nuclei of a file, read one by one: as one tree, 200,000 of them would take gigabytes. */
def readNuclei(File file) {
    def gson = GsonTools.getInstance()
    // Before 0.6 a detection cannot hold metadata, and QuPath would print a warning for each value of each nucleus.
    def version = QP.VERSION
    def metadata = version == null || version.getMajor() > 0 || version.getMinor() >= 6
    def nuclei = []
    def stream = new GZIPInputStream(new BufferedInputStream(new FileInputStream(file)))
    new JsonReader(new InputStreamReader(stream, 'UTF-8')).withCloseable { reader ->
        reader.beginObject()
        while (reader.hasNext()) {
            if (reader.nextName() != 'features') {
                reader.skipValue()
                continue
            }
            reader.beginArray()
            while (reader.hasNext()) {
                if (metadata) {
                    nuclei << gson.fromJson(reader, PathObject)
                } else {
                    def feature = gson.fromJson(reader, JsonObject)
                    feature.getAsJsonObject('properties').remove('metadata')
                    nuclei << gson.fromJson(feature, PathObject)
                }
            }
            reader.endArray()
        }
        reader.endObject()
    }
    return nuclei
}

/* How many nuclei were put onto an image; null where the folder has none for it, or where it is of another size. */
def importInto(imageData, String image) {
    def slide = slideOf(image)
    if (slide == null) {
        println "nucpipe: no nuclei for ${image} in ${FOLDER}"
        return null
    }
    def expected = about.slides[slide]
    def server = imageData.getServer()
    if (server.getWidth() != expected.width || server.getHeight() != expected.height) {
        println "nucpipe: nothing was imported: ${image} is ${server.getWidth()} x ${server.getHeight()} pixels, and " +
            "the nuclei of ${slide} are of ${expected.width} x ${expected.height}; open the image that was analysed"
        return null
    }
    def nuclei = readNuclei(new File(FOLDER, expected.file))
    def hierarchy = imageData.getHierarchy()
    def ids = nuclei.collect { it.getID() }.toSet()
    def before = hierarchy.getDetectionObjects().findAll { ids.contains(it.getID()) }
    def under = before.any { it.getParent() != null && it.getParent() != hierarchy.getRootObject() }
    if (before)
        hierarchy.removeObjects(before, true)
    hierarchy.addObjects(nuclei)
    if (under)
        hierarchy.resolveHierarchy()  // the old ones were in annotations, so the new ones go there, too
    println "nucpipe: ${nuclei.size()} nuclei on ${image}" + (before ? ", ${before.size()} old ones replaced" : '')
    return nuclei.size()
}

def start = new File(FOLDER, 'classes.json')
if (!start.isFile()) {
    println "nucpipe: ${start} is not there; set FOLDER in the first lines of this script to where it lies"
    return
}
about = new JsonSlurper().parse(start, 'UTF-8')
setColours(about.primary)
def open = QP.getProjectEntry()
if (ALL_IMAGES) {
    QP.getProject().getImageList().each { entry ->
        if (slideOf(entry.getImageName()) == null)
            return
        // The open image is changed where it is shown; saving it is left to the user, as for any other change.
        def shown = open != null && entry == open
        def imageData = shown ? QP.getCurrentImageData() : entry.readImageData()
        if (importInto(imageData, entry.getImageName()) != null && !shown)
            entry.saveImageData(imageData)
    }
} else {
    def imageData = QP.getCurrentImageData()
    importInto(imageData, open != null ? open.getImageName() : imageData.getServer().getMetadata().getName())
}
